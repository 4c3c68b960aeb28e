"""Which ranks are still there: every rank holds a connection to rank 0, and the end of a process ends it.

Ranks wait for each other: to meet, for a collective, for a save's commit. One that has left without the
others would be waited for until a time-out of minutes. Here the kernel tells: a connection ends with its
process, however that dies (keep-alive probes find a machine that is gone), and a rank that leaves in words
says which. Rank 0 passes it on, and what follows is each rank's own: it leaves too. There is no heartbeat, so
a rank that is busy, or stopped in a debugger, is never taken for dead. Imports no torch.

Rank 0 announces where it listens in the store at which the ranks meet. That may be a launcher's, which
outlives the ranks: torchrun starts them again beside what the dead ones left in it. So the announcement has a
key of its own at each start, a rank takes it for the present one only when rank 0 answers with that key, and
what else the ranks put into the store goes under it.

Under `germinal train` ranks have no need of it, for its supervisor is the parent of all.
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
from typing import Any

CONNECT_SECONDS = 10.0
# How long to wait for an answer, or after none came, before the announcement is read anew.
ANEW_SECONDS = 0.2
# How long a rank 0 that leaves alone waits for those that are still on their way, to tell them.
LATE_SECONDS = 60.0
# Probes after that many seconds of silence, every so many, and the connection's end after so many lost.
_IDLE, _INTERVAL, _COUNT = 15, 5, 3


@dataclass(frozen=True)
class Departure:
    """A rank that is gone. `code`: its exit code, None where it did not say. `agreed`: all were to leave."""

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
        self.key = ""  # of this start of the ranks, once they have met

    def listen(self, store_host: str, store_port: int) -> str:
        """Rank 0: begin to listen; returns what to announce in the store at that address, `PORT KEY ADDRESS`.

        ADDRESS is this machine's on the way to the store, which another machine may hold (torchrun's c10d
        rendezvous); absent where that way does not leave this machine.
        """
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        server = socket.create_server(
            ("", 0), family=family, backlog=self._world, dualstack_ipv6=family == socket.AF_INET6
        )
        self.key = os.urandom(8).hex()
        threading.Thread(target=self._serve, args=(server,), name="presence", daemon=True).start()
        return f"{server.getsockname()[1]} {self.key} {_own_address(store_host, store_port)}".rstrip()

    def join(self, store_host: str, announced: Callable[[], str], *, patience_seconds: float) -> None:
        """The other ranks: connect to rank 0 of this start.

        `announced` reads what stands in the store, which may be of a start before this one until rank 0 of
        this one has come. RuntimeError where no rank 0 that was announced has answered in time.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            where = announced()
            port, self.key, *address = where.split()

            def is_current(where: str = where) -> bool:
                return time.monotonic() < deadline and announced() == where

            # No way may lead from here to its own address; the store's host is often its own.
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
            time.sleep(ANEW_SECONDS)

    def _connect(self, host: str, port: int, is_current: Callable[[], bool]) -> socket.socket:
        """The connection to the rank 0 that listens there with our key. OSError where there is none, or where
        the announcement is no longer the current one before it has answered.
        """
        rank_0 = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        try:
            _send(rank_0, {"rank": self._rank, "key": self.key})
            rank_0.settimeout(ANEW_SECONDS)
            expected, answer = _line({"rank": 0, "key": self.key}), b""
            while answer != expected:
                try:
                    received = rank_0.recv(len(expected) - len(answer))
                except TimeoutError:
                    # Not to be left for being slow: rank 0 would take that for the end of this rank.
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
        """Tell the others. Rank 0, where it leaves alone, waits a while for those that have not come."""
        left = Departure(self._rank, code, why, agreed)
        self._pass_on(left)
        by = time.monotonic() + LATE_SECONDS
        while self._rank == 0 and not agreed and time.monotonic() < by:
            with self._lock:
                if len(self._peers.keys() | self._gone.keys() - {0}) == self._world - 1:
                    return
            time.sleep(0.02)

    def first_departure(self, patience_seconds: float) -> Departure | None:
        """Who was first to leave without the others, if that is known within `patience_seconds`."""
        by = time.monotonic() + patience_seconds
        while True:
            with self._lock:
                found = [left for left in self._gone.values() if not left.agreed and left.rank != self._rank]
            if found or time.monotonic() > by:
                return found[0] if found else None
            time.sleep(0.02)

    def _pass_on(self, left: Departure) -> bool:
        """Note it, and tell every rank that this one is connected to; False where it was known."""
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
        heard: dict[socket.socket, tuple[int, bytes]] = {}  # the rank, -1 before it says so; a line's begin
        while True:
            for key, _ in selector.select():
                if key.fileobj is server:
                    peer, _ = server.accept()
                    _keep_alive(peer)
                    heard[peer] = (-1, b"")
                    selector.register(peer, selectors.EVENT_READ)
                    continue
                peer = key.fileobj  # type: ignore[assignment]
                rank, begun = heard[peer]
                try:
                    data = peer.recv(4096)
                    *lines, begun = (begun + data).split(b"\n")
                    for line in lines:
                        rank = self._handle(peer, rank, json.loads(line))
                except (OSError, ValueError, KeyError, TypeError):  # gone; or nobody of ours
                    data = b""
                heard[peer] = (rank, begun)
                if not data or len(begun) > 1 << 16:
                    selector.unregister(peer)
                    del heard[peer]
                    peer.close()
                    if rank > 0:
                        with self._lock:
                            self._peers.pop(rank, None)
                        self._record_departure(Departure(rank))

    def _handle(self, peer: socket.socket, rank: int, message: dict[str, Any]) -> int:
        """Act on one message; returns whose connection it is."""
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
    with contextlib.suppress(OSError):  # it has left, and its own connection tells so
        peer.sendall(_line(message))


def _own_address(host: str, port: int) -> str:
    """Of this machine, on the way to `host`; empty where that is this machine by a loopback address."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # of a datagram socket: nothing is sent, a route is looked up
                own = str(probe.getsockname()[0])
                return "" if ipaddress.ip_address(own).is_loopback else own
    return ""


def _keep_alive(peer: socket.socket) -> None:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _IDLE), ("TCP_KEEPINTVL", _INTERVAL), ("TCP_KEEPCNT", _COUNT)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
