"""Which ranks are still there: every rank keeps a connection to rank 0, and a process that ends closes it.

Ranks wait for each other: at the rendezvous, in a collective, at the commit of a save. If one rank ends
without the others, they would wait until a time-out of minutes. Here the kernel reports the end: a connection
is closed with its process, however the process dies; keep-alive probes find a machine that is lost. A rank
that ends in order sends its exit code first. Rank 0 forwards what it learns, and every rank then ends too:

    rank 2          rank 0          rank 1
      | killed
      x - closed - - >|
                      | Departure(2) - >|
                      | on_departure    | on_departure, in a thread of its own

There is no heartbeat, so a rank that is busy, or stopped in a debugger, is never taken for dead. Imports no
torch.

Rank 0 announces its address in the store at which the ranks meet. The store may be a launcher's and outlive
the ranks: torchrun starts them again with what the dead ranks left in it. So every start has a key of its own
in the announcement. A rank accepts an announcement only when a rank 0 answers there with that key; the ranks
keep everything else in the store under that key.

Under `germinal train` the supervisor is the parent of all ranks, and presence is not used.
"""

import contextlib
import ipaddress
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

CONNECT_SECONDS = 10.0
# How long to wait for an answer, and after a failed attempt, before the announcement is read again.
RETRY_SECONDS = 0.2
# How long a rank 0 that leaves alone waits for ranks that have not connected yet, to tell them.
LATE_SECONDS = 60.0
# Keep-alive probes: seconds of silence before the first, seconds between two, and how many may be lost.
_IDLE, _INTERVAL, _COUNT = 15, 5, 3


@dataclass(frozen=True)
class Departure:
    """The end of a rank.

    rank: which one.
    code: its exit code; None where it died without sending one.
    why: the reason that it sent.
    agreed: all ranks were to leave together, so that no rank has to act on this one's end.
    """

    rank: int
    code: int | None = None
    why: str = ""
    agreed: bool = False

    def __str__(self) -> str:
        if self.code is None:
            return f"rank {self.rank} is gone without a word: was it killed, or its machine lost?"
        return f"rank {self.rank}: {self.why or f'left with exit code {self.code}'}"


class Presence:
    """This rank among `world`. `on_departure` is called in a thread of its own for each rank that leaves."""

    def __init__(self, rank: int, world: int, on_departure: Callable[[Departure], None]) -> None:
        self._rank = rank
        self._world = world
        self._on_left = on_departure
        self._lock = threading.Lock()
        self._peers: dict[int, socket.socket] = {}  # rank 0: of each other rank; else rank 0's
        self._gone: dict[int, Departure] = {}
        self.key = ""  # of this start of the ranks; known after `listen` or `join`

    def listen(self, store_host: str, store_port: int) -> str:
        """On rank 0: begin to listen. Return the announcement for the store: `PORT KEY ADDRESS`.

        ADDRESS is this machine's, as seen from the store, which another machine may hold (torchrun's c10d
        rendezvous). Absent where the store is on this machine.
        """
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        server = socket.create_server(
            ("", 0), family=family, backlog=self._world, dualstack_ipv6=family == socket.AF_INET6
        )
        self.key = os.urandom(8).hex()
        threading.Thread(target=self._serve, args=(server,), name="presence", daemon=True).start()
        return f"{server.getsockname()[1]} {self.key} {_own_address(store_host, store_port)}".rstrip()

    def join(self, store_host: str, announced: Callable[[], str], *, patience_seconds: float) -> None:
        """On the other ranks: connect to rank 0 of this start.

        announced: reads the announcement in the store. Until rank 0 of this start has come, it may be that of
            an earlier start.
        patience_seconds: RuntimeError where no announced rank 0 has answered by then.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            where = announced()
            port, self.key, *address = where.split()

            def is_current(where: str = where) -> bool:
                return time.monotonic() < deadline and announced() == where

            # The announced address may be out of reach from here; the store's host often is rank 0's machine.
            for host in dict.fromkeys((*address, store_host)):
                try:
                    self._peers[0] = self._connect(host, int(port), is_current)
                except OSError as error:
                    reason = f"{host}:{port}: {error.strerror or error}"
                    continue
                listener = threading.Thread(
                    target=self._read_departures, args=(self._peers[0],), name="presence"
                )
                listener.daemon = True
                listener.start()
                return
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"rank {self._rank} has not reached rank 0 within {patience_seconds:g} s: {reason}: was "
                    "it started, and may the ranks' machines connect to each other at any port?"
                )
            time.sleep(RETRY_SECONDS)

    def _connect(self, host: str, port: int, is_current: Callable[[], bool]) -> socket.socket:
        """Return a connection to the rank 0 that listens there with our key.

        OSError where there is none, or where the announcement changes before it has answered.
        """
        rank_0 = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        try:
            _send(rank_0, {"rank": self._rank, "key": self.key})
            rank_0.settimeout(RETRY_SECONDS)
            expected, answer = _line({"rank": 0, "key": self.key}), b""
            while answer != expected:
                try:
                    received = rank_0.recv(len(expected) - len(answer))
                except TimeoutError:
                    # Do not hang up because rank 0 is slow: it would take that for the end of this rank.
                    if not is_current():
                        raise
                    continue
                answer += received
                if not received or not expected.startswith(answer):
                    raise ConnectionError("who listens there is no rank 0 that waits for this rank")
            _keep_alive(rank_0)
        except BaseException:
            rank_0.close()
            raise
        return rank_0

    def leave(self, code: int, why: str, *, agreed: bool) -> None:
        """Tell the other ranks. Where rank 0 leaves alone, wait a while for ranks that have not connected."""
        left = Departure(self._rank, code, why, agreed)
        self._pass_on(left)
        by = time.monotonic() + LATE_SECONDS
        while self._rank == 0 and not agreed and time.monotonic() < by:
            with self._lock:
                if len(self._peers.keys() | self._gone.keys() - {0}) == self._world - 1:
                    return
            time.sleep(0.02)

    def first_departure(self, patience_seconds: float) -> Departure | None:
        """The first rank that left without the others; None if none is known within `patience_seconds`."""
        by = time.monotonic() + patience_seconds
        while True:
            with self._lock:
                found = [left for left in self._gone.values() if not left.agreed and left.rank != self._rank]
            if found or time.monotonic() > by:
                return found[0] if found else None
            time.sleep(0.02)

    def _pass_on(self, left: Departure) -> bool:
        """Record a departure and send it to the connected ranks. Return False where it was known."""
        with self._lock:
            if left.rank in self._gone:
                return False
            self._gone[left.rank] = left
            for peer in list(self._peers.values()) if self._rank in (0, left.rank) else []:
                _send(peer, vars(left))
        return True

    def _record_departure(self, left: Departure) -> None:
        if self._pass_on(left):
            threading.Thread(target=self._on_left, args=(left,), daemon=True).start()

    def _read_departures(self, rank_0: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), rank_0.makefile("rb") as lines:
            for line in lines:
                self._record_departure(Departure(**json.loads(line)))
        self._record_departure(Departure(0))

    def _serve(self, server: socket.socket) -> None:
        selector = selectors.DefaultSelector()
        selector.register(server, selectors.EVENT_READ)
        # Connection → (its rank, -1 until its first message; the beginning of an incomplete line).
        connections: dict[socket.socket, tuple[int, bytes]] = {}
        while True:
            for key, _ in selector.select():
                if key.fileobj is server:
                    peer, _ = server.accept()
                    _keep_alive(peer)
                    connections[peer] = (-1, b"")
                    selector.register(peer, selectors.EVENT_READ)
                    continue
                peer = cast(socket.socket, key.fileobj)
                rank, incomplete = connections[peer]
                try:
                    data = peer.recv(4096)
                    *lines, incomplete = (incomplete + data).split(b"\n")
                    for line in lines:
                        rank = self._handle(peer, rank, json.loads(line))
                except (OSError, ValueError, KeyError, TypeError):  # closed; or not one of our ranks
                    data = b""
                connections[peer] = (rank, incomplete)
                if not data or len(incomplete) > 1 << 16:
                    selector.unregister(peer)
                    del connections[peer]
                    peer.close()
                    if rank > 0:
                        with self._lock:
                            self._peers.pop(rank, None)
                        self._record_departure(Departure(rank))

    def _handle(self, peer: socket.socket, rank: int, message: dict[str, Any]) -> int:
        """Act on one message. Return the rank of the connection."""
        if rank > 0:
            self._record_departure(Departure(**message))
            return rank
        if message["key"] != self.key:
            raise ValueError("not of this run")
        with self._lock:
            if message["rank"] in self._peers.keys() | self._gone.keys():
                raise ValueError("a rank of a later start: its own rank 0 has not announced itself yet")
            _send(peer, {"rank": 0, "key": self.key})
            self._peers[message["rank"]] = peer
            for left in self._gone.values():
                _send(peer, vars(left))
        return int(message["rank"])


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _send(peer: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the peer has ended, which its connection reports
        peer.sendall(_line(message))


def _own_address(host: str, port: int) -> str:
    """This machine's address on the way to `host`; empty where `host` is a loopback address."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # on a datagram socket this sends nothing and only looks up a route
                own = str(probe.getsockname()[0])
                return "" if ipaddress.ip_address(own).is_loopback else own
    return ""


def _keep_alive(peer: socket.socket) -> None:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _IDLE), ("TCP_KEEPINTVL", _INTERVAL), ("TCP_KEEPCNT", _COUNT)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
