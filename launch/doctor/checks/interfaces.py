"""Network interfaces: which there are, which would be taken, what is wrong with them. Linux only."""

import fcntl
import os
import resource
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.doctor.check import Circumstances
from launch.doctor.finding import Finding, note, ok, warning

NET = Path("/sys/class/net")
INFINIBAND = Path("/sys/class/infiniband")
ROUTES = Path("/proc/net/route")
PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
SIOCGIFADDR = 0x8915
# Bridges and pairs that containers bring; no other machine is behind them.
VIRTUAL = ("docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "podman", "ifb", "dummy")
FEWEST_PORTS = 1000
SLOWEST_MEGABITS = 1000


@dataclass(frozen=True)
class Interface:
    """A network interface that is up and has an IPv4 address.

    name: such as eth0.
    address: its IPv4 address.
    mtu: the largest packet, in bytes.
    megabits: its speed in Mbit/s; 0 where the driver does not say.
    """

    name: str
    address: str
    mtu: int
    megabits: int

    def __str__(self) -> str:
        speed = f", {self.megabits / 1000:g} Gbit/s" if self.megabits else ""
        return f"{self.name} ({self.address}, MTU {self.mtu}{speed})"


def check(at: Circumstances) -> Iterator[Finding]:
    """Interfaces, the variables that choose one, InfiniBand, the range of ports."""
    if NET.is_dir():
        found = list(usable())
        yield from chosen(at, found, default=default_route())
    yield from infiniband(INFINIBAND)
    yield from ports(PORTS)


def usable(root: Path = NET) -> Iterator[Interface]:
    """The interfaces that reach other machines."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for folder in sorted(root.iterdir()):
            name = folder.name
            if name == "lo" or name.startswith(VIRTUAL):
                continue
            try:
                request = struct.pack("256s", os.fsencode(name)[:15])
                address = socket.inet_ntoa(fcntl.ioctl(asking, SIOCGIFADDR, request)[20:24])
            except OSError:  # it has no address
                continue
            if _read(folder / "operstate") != "down":
                megabits = _number(folder / "speed")
                yield Interface(name, address, _number(folder / "mtu"), max(0, megabits))


def default_route(file: Path = ROUTES) -> str:
    """The interface of the default route; "" without one."""
    for line in _read(file).splitlines()[1:]:
        name, destination, *_ = line.split()
        if destination == "00000000":
            return name
    return ""


def chosen(at: Circumstances, found: list[Interface], *, default: str) -> Iterator[Finding]:
    """Which interface ranks on several machines would use, and whether that one will do."""
    yield from named_in(at.environ, {path.name for path in NET.iterdir()})
    if not found:
        if at.one_of_several:
            text = "no interface but loopback is up with an address"
            yield warning("network.interfaces", text, "see `ip address`: other nodes cannot reach this one")
        else:
            yield ok("network.interfaces", "none besides loopback, which is all that a single machine needs")
        return
    first = next((interface for interface in found if interface.name == default), found[0])
    told = ", ".join(map(str, found))
    same = {"MTU": str(first.mtu)} if at.one_of_several else {}
    yield ok("network.interfaces", f"{told}; ranks on several machines would use {first.name}", same=same)
    if not at.one_of_several:
        return
    if len(found) > 1 and not at.environ.get("GLOO_SOCKET_IFNAME"):
        text = f"{len(found)} interfaces: {told}; ranks use the one by which they reach rank 0"
        remedy = "if that is not the fast one: export GLOO_SOCKET_IFNAME=NAME NCCL_SOCKET_IFNAME=NAME"
        yield note("network.several", text, remedy)
    if 0 < first.megabits < SLOWEST_MEGABITS:
        text = f"{first} is slow for gradients"
        yield warning("network.speed", text, "see `ethtool`: is it the right interface, and the right cable?")


def named_in(environ: Mapping[str, str], there: set[str]) -> Iterator[Finding]:
    """GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME have to name interfaces of this machine."""
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        given = environ.get(variable, "")
        if not given or given.startswith("^"):  # NCCL: all but these
            continue
        prefix = variable.startswith("NCCL") and not given.startswith("=")
        for name in given.lstrip("=").split(","):
            if name in there or (prefix and any(other.startswith(name) for other in there)):
                continue
            text = (
                f"{variable}={given}: this machine has no interface {name}, only {', '.join(sorted(there))}"
            )
            yield warning("network.named", text, f"unset {variable}, or name one that every node has")


def infiniband(root: Path) -> Iterator[Finding]:
    """Ports of InfiniBand adapters that are not active, and the locked memory that they need."""
    if not root.is_dir():
        return
    states = {
        f"{port.parent.parent.name}/{port.name}": (_read(port / "state"), _read(port / "rate"))
        for port in sorted(root.glob("*/ports/*"))
    }
    active = [f"{name} at {rate}" for name, (state, rate) in states.items() if "ACTIVE" in state]
    for name, (state, _) in states.items():
        if "ACTIVE" not in state:
            text = f"InfiniBand port {name} is {state or 'unknown'}"
            yield note(
                "network.infiniband", text, "if this port should be in use: see `ibstat`, cable and switch"
            )
    if active:
        yield ok(
            "network.infiniband",
            f"InfiniBand: {', '.join(active)}",
            same={"InfiniBand ports": str(len(active))},
        )
        locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if locked != resource.RLIM_INFINITY:
            text = (
                f"a process may lock {locked // 1024} KiB of memory, and InfiniBand locks all that it sends"
            )
            yield warning(
                "network.memlock",
                text,
                "set memlock to unlimited in /etc/security/limits.conf; under SLURM "
                "LimitMEMLOCK=infinity for slurmd and PropagateResourceLimitsExcept=MEMLOCK",
            )


def ports(file: Path) -> Iterator[Finding]:
    """The ports that the system gives out, from which ranks take theirs."""
    try:
        low, high = map(int, file.read_text().split())
    except (OSError, ValueError):
        return
    if high - low < FEWEST_PORTS:
        text = f"the system gives out ports {low} to {high} only, and each rank needs several"
        yield warning("network.ports", text, "sysctl -w net.ipv4.ip_local_port_range='32768 60999'")


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _number(file: Path) -> int:
    text = _read(file)
    return int(text) if text.lstrip("-").isdecimal() else 0
