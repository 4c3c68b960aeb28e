"""How the ranks meet: every rank finds rank 0, and rank 0 waits until all have come. Imports no torch.

    another rank                                  rank 0
      | hello: rank, world, key, machine, device    |
      | - - - - - - - - - - - - - - - - - - - - - ->|   another key: closed. The rank tries the next port.
      |                               welcome: host |
      |<- - - - - - - - - - - - - - - - - - - - - - |
      | here                                        |   from now on the end of this connection is the rank's
      | - - - - - - - - - - - - - - - - - - - - - ->|   departure; until now the rank may turn elsewhere
      |                                             |   when all are here, the listener is closed
      |                  begin: address of the store|
      |<- - - - - - - - - - - - - - - - - - - - - - |

The key tells the ranks of one start from those of others: of SLURM's steps the number of job, step and
restart; where rank 0 announces itself in a launcher's store, which may outlive the ranks, a random one in
the announcement. Nothing else is kept in a launcher's store.

Cost: a connection for each rank, and three messages over it.
"""

import contextlib
import errno
import ipaddress
import os
import queue
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.standard_error import write_line
from parallel.world import slurm
from parallel.world.addresses import interface_of, is_loopback, own_addresses, plain
from parallel.world.presence import Presence
from parallel.world.rendezvous import LOOPBACK, Place, missing, shared, unlike
from parallel.world.wire import Connection, Message, keep_alive, line, receive_line

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 5.0
# Pauses between two rounds of attempts: the first, and the longest.
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.2, 2.0
# After this long the ranks say whom they wait for.
SILENT_SECONDS = 30.0


@dataclass(frozen=True)
class Target:
    """Where rank 0 may listen, and the key of its start."""

    address: str
    port: int
    key: str


def listen(presence: Presence, place: Place, about: Message) -> str:
    """On rank 0: begin to listen. Return the announcement for a launcher's store: `PORT KEY ADDRESS…`.

    RuntimeError where the port, or each of the ports, is in use.
    """
    server = _open(presence.world, place)
    key = os.urandom(8).hex() if place.announced else place.key
    presence.listen(server, {**about, "world": presence.world, "key": key})
    known = [LOOPBACK] if place.one_machine else [_way_to(place.host, place.ports[0]), *own_addresses()]
    return " ".join([str(server.getsockname()[1]), key, *dict.fromkeys(filter(None, known))])


def announced(text: str, store_address: str) -> list[Target]:
    """The targets of an announcement; the store's machine is often rank 0's."""
    port, key, *addresses = text.split()
    return [Target(address, int(port), key) for address in dict.fromkeys((*addresses, store_address))]


def answering(addresses: Sequence[str], port: int) -> str:
    """The first of `addresses` where a store answers; the first at all where none does."""
    for address in addresses if len(addresses) > 1 else ():
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=CONNECT_SECONDS):
            return address
    return addresses[0]


def reach(
    presence: Presence,
    targets: Callable[[], Sequence[Target]],
    about: Message,
    *,
    patience_seconds: float,
    name: str = "",
    speaks: bool = False,
) -> None:
    """On the other ranks: connect to rank 0 of this start.

    targets: where it may be; asked again before each round of attempts.
    about: what rank 0 is told of this rank.
    patience_seconds: RuntimeError where no rank 0 has answered by then.
    name: of rank 0's machine, or of the one with the launcher's store, as the launcher has it.
    speaks: say after SILENT_SECONDS which rank 0 this rank waits for.

    ValueError where rank 0 refuses this rank, as for another number of ranks.
    """
    begun = time.monotonic()
    where = f" at {name}" if name else ""
    pause, reason = RETRY_SECONDS, "nothing is announced"
    while True:
        for target in targets():
            try:
                presence.connected(_connect(presence, target, about))
                return
            except OSError as error:
                reason = f"{target.address}:{target.port}: {error.strerror or error}"
        waited = time.monotonic() - begun
        if waited > patience_seconds:
            raise RuntimeError(
                f"rank {presence.rank} has not reached rank 0{where} within {patience_seconds:g} s: {reason}"
                ": was it started, and may the ranks' machines connect to each other at any port?"
            )
        if speaks and waited > SILENT_SECONDS:
            speaks = False
            write_line(f"rank {presence.rank} on {presence.host} waits for rank 0{where}: {reason}")
        time.sleep(pause)
        # All ranks of a large world would keep a rank 0 busy that is late.
        pause = min(1.5 * pause, max(LONGEST_RETRY_SECONDS, presence.world / 1000))


def gather(presence: Presence, *, patience_seconds: float, hosts: Callable[[int], str]) -> None:
    """On rank 0: wait until every rank is here, and tell all of them to begin or why not.

    hosts: the machine of a rank that has not come, as far as that is known.

    RuntimeError where some do not come. ValueError, on every rank, where they do not fit together.
    """
    begun = time.monotonic()
    arrivals = presence.arrivals
    if not arrivals.settled.wait(min(SILENT_SECONDS, patience_seconds)):
        write_line(f"rank 0 on {presence.host} waits for {_absent(presence, hosts)}")
    if not arrivals.settled.wait(max(0.0, patience_seconds - (time.monotonic() - begun))):
        raise RuntimeError(
            f"{_absent(presence, hosts)} did not come within {patience_seconds:g} s: was it started, with "
            "the same MASTER_ADDR, MASTER_PORT and number of ranks?"
        )
    hellos = arrivals.hellos
    wrong = (
        arrivals.refused
        or unlike({rank: str(hello["device"]) for rank, hello in hellos.items()})
        or shared({rank: (str(hello["host"]), str(hello["gpu"])) for rank, hello in hellos.items()})
    )
    if wrong:
        presence.begin({"error": wrong})
        raise ValueError(wrong)


def open_store(presence: Presence) -> socket.socket:
    """On rank 0: a socket that listens for the process group's store, at an address that all ranks reach:
    the one by which presence was reached, a loopback address where all ranks are on one machine.
    """
    addresses = _reached(presence)
    if len(addresses) == 1:
        return socket.create_server(
            (addresses[0], 0), family=_family(addresses[0]), backlog=max(128, presence.world)
        )
    return _listen_everywhere(0, presence.world)


def begin(presence: Presence, port: int) -> tuple[str, str]:
    """On rank 0, with the store's port: let the others begin. Return (address, network interface).

    Where the ranks are on several machines, a line says which interface carries their collectives.
    """
    address = _reached(presence)[0]
    interface = interface_of(address)
    presence.begin({"address": address, "port": port, "interface": interface})
    machines = {(hello["net"], hello["host"]) for hello in presence.arrivals.hellos.values()}
    if not is_loopback(address):
        write_line(
            f"{presence.world} ranks on {len(machines)} machines; rank 0 is on {presence.host}, reached over "
            f"{interface or 'an unknown interface'} ({address})"
        )
    return address, interface


def await_beginning(presence: Presence, *, patience_seconds: float) -> tuple[str, int, str]:
    """On another rank: wait for rank 0's word. Return the store's address and port, and the network
    interface.

    ValueError as `gather` on rank 0. RuntimeError where rank 0 says nothing for longer than it may wait
    itself.
    """
    try:
        told = presence.beginning.get(timeout=patience_seconds + SILENT_SECONDS)
    except queue.Empty:
        raise RuntimeError(
            f"rank {presence.rank} has had no word of rank 0 on {presence.host_of(0)} within "
            f"{patience_seconds:g} s: it has not met all other ranks"
        ) from None
    if "error" in told:
        raise ValueError(told["error"])
    if presence.arrivals.hellos[0]["net"] == presence.net:
        return str(told["address"]), int(told["port"]), str(told["interface"])
    own, other = presence.way
    return other, int(told["port"]), interface_of(own)


def _connect(presence: Presence, target: Target, about: Message) -> Connection:
    """Return a connection to the rank 0 that listens there with our key. OSError where there is none."""
    own = {"rank": presence.rank, "world": presence.world, "host": presence.host, "net": presence.net}
    rank_0 = socket.create_connection((target.address, target.port), timeout=CONNECT_SECONDS)
    try:
        keep_alive(rank_0)
        rank_0.settimeout(ANSWER_SECONDS)
        rank_0.sendall(line({**about, **own, "key": target.key}))
        answer = receive_line(rank_0)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        if answer.get("key") != target.key:
            raise ConnectionError(f"a rank 0 is there that does not wait for rank {presence.rank}")
        rank_0.sendall(line({"here": presence.rank}))
        return Connection(rank_0, 0, answer)
    except BaseException:
        rank_0.close()
        raise


def _open(world: int, place: Place) -> socket.socket:
    """A socket that listens for the ranks: at loopback only, where they are known to be on one machine."""
    if place.listener >= 0:
        return socket.socket(fileno=place.listener)
    host = place.host if _is_loopback_name(place.host) else ""
    for port in (0,) if place.announced else place.ports:
        try:
            if place.one_machine or host:
                address = host if ":" in host else LOOPBACK
                return socket.create_server((address, port), family=_family(address), backlog=max(128, world))
            return _listen_everywhere(port, world)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise RuntimeError(f"rank 0 cannot listen at port {port}: {error.strerror}") from error
    tried = ", ".join(map(str, place.ports))
    raise RuntimeError(
        f"MASTER_PORT: port {tried} is in use on this machine: choose another, the same for every rank, or "
        "see with `ss -ltnp` what uses it"
    )


def _listen_everywhere(port: int, world: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=max(128, world), dualstack_ipv6=both)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _is_loopback_name(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return is_loopback(host)
    return host == "localhost"


def _reached(presence: Presence) -> list[str]:
    """The addresses of rank 0's machine by which the other machines reached it, the most usual first."""
    counts = Counter(
        plain(str(hello["reached"]))
        for hello in presence.arrivals.hellos.values()
        if hello["net"] != presence.net
    )
    return [address for address, _ in counts.most_common()] or [LOOPBACK]


def _absent(presence: Presence, hosts: Callable[[int], str]) -> str:
    absent = presence.arrivals.missing()
    return missing(absent, {rank: hosts(rank) for rank in absent[:8]}, presence.world)


def hosts_of(environ: Mapping[str, str], *, by_srun: bool) -> Callable[[int], str]:
    """The function rank → its machine, of SLURM's node list; elsewhere no machine is known."""
    return lambda rank: slurm.host_of(rank, environ) if by_srun else ""


def _way_to(host: str, port: int) -> str:
    """This machine's address on the way to `host`; empty where that is this machine."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # on a datagram socket this sends nothing and only looks up a route
                own = str(probe.getsockname()[0])
                return "" if ipaddress.ip_address(own).is_loopback else own
    return ""
