"""Does this machine's own name lead to an address that others can reach it at?"""

import socket
import time
from collections.abc import Iterator

from launch.doctor.check import Circumstances
from launch.doctor.finding import Finding, error, note, ok, warning

SLOW_SECONDS = 1.0
HOSTS = "/etc/hosts"


def check(at: Circumstances) -> Iterator[Finding]:
    """The own host name, MASTER_ADDR and localhost."""
    yield from own_name(socket.gethostname(), at)
    yield from rank_0s(at.environ.get("MASTER_ADDR", ""), at)
    yield from localhost()


def addresses(name: str) -> list[str]:
    """The addresses of a name, each once, in the resolver's order. OSError where it has none."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(name, None)))


def own_name(name: str, at: Circumstances) -> Iterator[Finding]:
    """What `name`, this machine's, resolves to, and how long that takes."""
    began = time.monotonic()
    try:
        found = addresses(name)
    except OSError as problem:
        make = warning if at.one_of_several else note
        text = f"the own name {name!r} does not resolve: {problem.strerror or problem}"
        yield make(
            "names.own", text, f"add a line `ADDRESS {name}` to {HOSTS}, with the address of this machine"
        )
        return
    seconds = time.monotonic() - began
    shown = ", ".join(found)
    looped = loopback(found)
    if looped and len(looped) == len(found):
        text = f"the own name {name!r} means {shown}, at which only this machine reaches itself"
        if at.one_of_several:
            remedy = f"in {HOSTS} give {name} the address of its network, not {looped[0]}"
            yield warning("names.own", text, remedy)
        else:
            yield ok("names.own", f"{text}; that is enough for a single machine")
    else:
        yield ok("names.own", f"{name} is {shown}", measured={"name_seconds": seconds})
    if seconds > SLOW_SECONDS:
        text = f"the own name took {seconds:.1f} s to resolve"
        yield warning(
            "names.slow", text, f"look at the name servers in /etc/resolv.conf, or add {name} to {HOSTS}"
        )


def loopback(found: list[str]) -> list[str]:
    """Those of the addresses at which only this machine reaches itself."""
    return [address for address in found if address.startswith("127.") or address == "::1"]


def rank_0s(name: str, at: Circumstances) -> Iterator[Finding]:
    """What MASTER_ADDR means here, at which ranks look for rank 0 where it is set (docs/ranks.md)."""
    if not name:
        return
    remedy = "set it to an address or name of rank 0's machine that all nodes know, or unset it under srun"
    try:
        found = addresses(name)
    except OSError as problem:
        text = f"MASTER_ADDR={name} has no address: {problem.strerror or problem}"
        yield warning("names.master", text, remedy)
        return
    text = f"MASTER_ADDR={name} is {', '.join(found)}"
    if at.one_of_several and len(loopback(found)) == len(found):
        yield warning("names.master", f"{text}: each node would look for rank 0 on itself", remedy)
    else:
        yield ok("names.master", f"{text}: there ranks look for rank 0")


def localhost() -> Iterator[Finding]:
    """localhost has to be the loopback address, and connections to that address have to work."""
    try:
        found = addresses("localhost")
    except OSError:
        found = []
    if not loopback(found):
        text = f"localhost means {', '.join(found) or 'nothing'}"
        yield error("names.localhost", text, f"add a line `127.0.0.1 localhost` to {HOSTS}")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as problem:
        text = f"127.0.0.1 takes no connection: {problem}"
        yield error(
            "names.loopback", text, "bring up the interface lo (`ip link set lo up`); look for a firewall"
        )
