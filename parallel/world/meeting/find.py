"""How another rank finds rank 0, which listens. Imports no torch."""

import contextlib
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.standard_error import write_line
from parallel.world.addresses import own_addresses
from parallel.world.meeting.listeners import listener
from parallel.world.presence import Presence
from parallel.world.rendezvous import LOOPBACK, Place, until
from parallel.world.wire import PROTOCOL, Connection, Message, keep_alive, line, receive_line

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
    server = listener(presence.world, place)
    port = server.getsockname()[1]  # now, for presence closes the listener once all ranks have come
    key = os.urandom(8).hex() if place.announced else place.key
    presence.listen(server, {**about, "world": presence.world, "key": key})
    known = [LOOPBACK] if place.one_machine else [_way_to(place.host, place.ports[0]), *own_addresses()]
    return " ".join([str(port), key, *dict.fromkeys(filter(None, known))])


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
            end = until(begun + patience_seconds)
            write_line(f"rank {presence.rank} on {presence.host} waits for rank 0{where}, {end}: {reason}")
        time.sleep(pause)
        # All ranks of a large world would keep a rank 0 busy that is late.
        pause = min(1.5 * pause, max(LONGEST_RETRY_SECONDS, presence.world / 1000))


def _connect(presence: Presence, target: Target, about: Message) -> Connection:
    """Return a connection to the rank 0 that listens there with our key. OSError where there is none."""
    own = {"rank": presence.rank, "world": presence.world, "host": presence.host, "net": presence.net}
    rank_0 = socket.create_connection((target.address, target.port), timeout=CONNECT_SECONDS)
    try:
        keep_alive(rank_0)
        rank_0.settimeout(ANSWER_SECONDS)
        rank_0.sendall(line({"protocol": PROTOCOL, **about, **own, "key": target.key}))
        answer = receive_line(rank_0)
        if "refused" in answer:
            raise ValueError(str(answer["refused"]))
        if answer.get("key") != target.key:
            raise ConnectionError(f"a rank 0 is there that does not wait for rank {presence.rank}")
        if answer.get("protocol") != PROTOCOL:
            raise ConnectionError("a rank 0 is there of another version of Germinal")
        rank_0.sendall(line({"here": presence.rank}))
        return Connection(rank_0, 0, answer)
    except BaseException:
        rank_0.close()
        raise


def _way_to(host: str, port: int) -> str:
    """This machine's address on the way to `host`; empty where that is this machine."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # on a datagram socket this sends nothing and only looks up a route
                own = str(probe.getsockname()[0])
                return "" if ipaddress.ip_address(own).is_loopback else own
    return ""
