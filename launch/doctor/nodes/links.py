"""From one node to the others: do names resolve, do connections work, do clocks agree, how fast is it?"""

import time
from collections.abc import Iterator, Sequence

from launch.doctor.checks.names import SLOW_SECONDS, addresses
from launch.doctor.finding import Finding, error, ok, warning
from launch.doctor.nodes.listener import Peer, clock_offset, reach, send_rate

CLOCK_SECONDS = 1.0
SENT_BYTES = 64 << 20
AWAY = ("127.", "::1")


def connect(peers: Sequence[Peer]) -> Iterator[Finding]:
    """Resolve and connect to every peer; compare clocks with the first of them."""
    trips = []
    for number, peer in enumerate(peers):
        yield from resolve(peer)
        try:
            connection, _ = reach(peer, peer.addresses)
        except OSError as problem:
            at = ", ".join(peer.addresses) or "no address"
            text = f"no connection to {peer.host} ({at}, port {peer.port}): {problem.strerror or problem}"
            remedy = (
                "open all ports between the nodes: a firewall, or interfaces in networks that are not joined"
            )
            yield error(f"network.connect.{peer.host}", text, remedy)
            continue
        with connection:
            offset, trip = clock_offset(connection)
        trips.append(trip)
        if not number:
            yield clock(peer.host, offset, trip)
    if trips:
        slowest = max(trips)
        text = f"connections to {len(trips)} of {len(peers)} nodes; round trips up to {slowest * 1e3:.2g} ms"
        yield ok("network.connect", text, measured={"round_trip_seconds": slowest})


def resolve(peer: Peer) -> Iterator[Finding]:
    """The peer's name has to lead to one of its addresses."""
    began = time.monotonic()
    remedy = f"add {peer.host} to DNS or to /etc/hosts of this node"
    try:
        found = addresses(peer.host)
    except OSError as problem:
        text = f"the name {peer.host} does not resolve here: {problem.strerror or problem}"
        yield warning(f"names.{peer.host}", text, f"{remedy}; under SLURM ranks take NodeAddr instead")
        return
    seconds = time.monotonic() - began
    if all(address.startswith(AWAY) for address in found):
        text = f"the name {peer.host} means {', '.join(found)} here, which is this node itself"
        yield warning(
            f"names.{peer.host}", text, f"in /etc/hosts give {peer.host} the address of its network"
        )
    elif peer.addresses and not set(found) & set(peer.addresses):
        text = f"the name {peer.host} means {', '.join(found)} here, and it has {', '.join(peer.addresses)}"
        yield warning(f"names.{peer.host}", text, f"{remedy}, with an address that it has")
    if seconds > SLOW_SECONDS:
        text = f"the name {peer.host} took {seconds:.1f} s to resolve here"
        yield warning(
            f"names.{peer.host}", text, "look at the name servers in /etc/resolv.conf, or use /etc/hosts"
        )


def clock(host: str, offset: float, trip: float) -> Finding:
    """Compare this node's clock with the first node's, which is `offset` seconds ahead."""
    measured = {"clock_offset_seconds": offset}
    text = f"this clock is {abs(offset):.3g} s {'behind' if offset > 0 else 'ahead of'} that of {host}"
    if abs(offset) - trip > CLOCK_SECONDS:
        remedy = (
            "let every node follow the same time server (chrony, ntpd): times in logs and of files do not fit"
        )
        return warning("network.clock", text, remedy, measured=measured)
    return ok("network.clock", text, measured=measured)


def send(peers: Sequence[Peer]) -> Iterator[Finding]:
    """Send to each peer in turn; the best rate is this node's: a lower one may be the peer's fault."""
    rates = {}
    for peer in peers:
        try:
            connection, _ = reach(peer, peer.addresses)
            with connection:
                rates[peer.host] = max(send_rate(connection, SENT_BYTES) for _ in range(2))
        except OSError:  # `connect` has told of it
            continue
    if rates:
        told = ", ".join(f"{rate / 1e9:.3g} GB/s to {host}" for host, rate in rates.items())
        text = f"one connection sends {told}"
        yield ok("network.send", text, measured={"send_bytes_per_second": max(rates.values())})
