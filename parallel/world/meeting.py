"""How the other ranks find rank 0, through the announcement that it leaves in a store. Imports no torch.

The store may be a launcher's and outlive the ranks: torchrun starts them again with what the dead ranks left
in it. So every start has a key of its own in the announcement. A rank accepts an announcement only when a
rank 0 answers there with that key; the ranks keep everything else in the store under that key.

    another rank                 rank 0
      | hello: rank, key, host     |
      | - - - - - - - - - - - - - >|
      |            the same key    |
      |< - - - - - - - - - - - - - |
      | here                       |     from now on the end of the connection is the rank's departure
      | - - - - - - - - - - - - - >|
"""

import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable

from parallel.world.presence import Presence
from parallel.world.wire import Connection, keep_alive, line, receive_line

CONNECT_SECONDS = 10.0
# How long to wait for an answer, and after a failed attempt, before the announcement is read again.
RETRY_SECONDS = 0.2


def listen(presence: Presence, store_host: str, store_port: int) -> str:
    """On rank 0: begin to listen. Return the announcement for the store: `PORT KEY ADDRESS`.

    ADDRESS is this machine's, as seen from the store, which another machine may hold (torchrun's c10d
    rendezvous). Absent where the store is on this machine.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    server = socket.create_server(
        ("", 0), family=family, backlog=presence.world, dualstack_ipv6=family == socket.AF_INET6
    )
    presence.listen(server)
    return f"{server.getsockname()[1]} {presence.key} {_own_address(store_host, store_port)}".rstrip()


def join(
    presence: Presence, store_host: str, announced: Callable[[], str], *, patience_seconds: float
) -> None:
    """On the other ranks: connect to rank 0 of this start.

    announced: reads the announcement in the store. Until rank 0 of this start has come, it may be that of
        an earlier start.
    patience_seconds: RuntimeError where no announced rank 0 has answered by then.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        where = announced()
        port, key, *address = where.split()

        def is_current(where: str = where) -> bool:
            return time.monotonic() < deadline and announced() == where

        # The announced address may be out of reach from here; the store's host often is rank 0's machine.
        for host in dict.fromkeys((*address, store_host)):
            try:
                presence.connected(_connect(presence, host, int(port), key, is_current), key)
            except OSError as error:
                reason = f"{host}:{port}: {error.strerror or error}"
                continue
            return
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"rank {presence.rank} has not reached rank 0 within {patience_seconds:g} s: {reason}: was "
                "it started, and may the ranks' machines connect to each other at any port?"
            )
        time.sleep(RETRY_SECONDS)


def _connect(
    presence: Presence, host: str, port: int, key: str, is_current: Callable[[], bool]
) -> Connection:
    """Return a connection to the rank 0 that listens there with our key.

    OSError where there is none, or where the announcement changes before it has answered.
    """
    rank_0 = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    try:
        keep_alive(rank_0)
        rank_0.sendall(line({"rank": presence.rank, "key": key, "host": presence.host}))
        rank_0.settimeout(RETRY_SECONDS)
        while True:
            try:
                answer = receive_line(rank_0)
                break
            except TimeoutError:
                if not is_current():
                    raise
        if answer.get("key") != key:
            raise ConnectionError("who listens there is no rank 0 that waits for this rank")
        rank_0.sendall(line({"here": presence.rank}))
        return Connection(rank_0, 0, str(answer.get("host", "")))
    except BaseException:
        rank_0.close()
        raise


def _own_address(host: str, port: int) -> str:
    """This machine's address on the way to `host`; empty where `host` is a loopback address."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # on a datagram socket this sends nothing and only looks up a route
                own = str(probe.getsockname()[0])
                return "" if ipaddress.ip_address(own).is_loopback else own
    return ""
