"""What a node listens with while it is examined, and what others ask there: its time, and to take data.

A listener takes one letter at a time: at `t` it answers with its time; `d`, a length and as many bytes, it
answers when it has them all. It is a process of its own, which ends with the process that made it.
"""

import os
import socket
import socketserver
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from launch.doctor.apart import end_with_parent

CONNECT_SECONDS = 5.0
PINGS = 15
TIME = struct.Struct("!d")
LENGTH = struct.Struct("!Q")
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Peer:
    """Another node, as this one may reach it.

    host: its name in the allocation.
    addresses: those of its interfaces.
    port: the port of its listener.
    """

    host: str
    addresses: tuple[str, ...]
    port: int


class _Answers(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.settimeout(60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while request := connection.recv(1):
                if request == b"t":
                    connection.sendall(TIME.pack(time.time()))
                elif request == b"d":
                    (left,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
                    while left:
                        left -= len(_some(connection, min(left, PIECE_BYTES)))
                    connection.sendall(b"k")
                else:
                    return
        except OSError:  # the other side has gone
            return


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


def start() -> tuple[int, int]:
    """Start a listener on every interface; return its port and its process's number."""
    server = _Server(("", 0), _Answers)
    port, parent = server.server_address[1], os.getpid()
    child = os.fork()
    if not child:
        _serve(server, parent)
    server.server_close()
    return port, child


def _serve(server: socketserver.TCPServer, parent: int) -> NoReturn:
    end_with_parent(parent)
    try:
        server.serve_forever()
    finally:
        os._exit(0)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def reach(peer: Peer, addresses: Sequence[str]) -> tuple[socket.socket, str]:
    """A connection to a peer and the address at which it was reached; OSError where none of them works."""
    problem: OSError = OSError("it has no address")
    for address in addresses:
        try:
            connection = socket.create_connection((address, peer.port), timeout=CONNECT_SECONDS)
        except OSError as error:
            problem = error
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address
    raise problem


def clock_offset(connection: socket.socket) -> tuple[float, float]:
    """(seconds by which the peer's clock is ahead, seconds of the round trip), as in NTP: the answer with the
    shortest round trip is taken, and half of the trip is added to its time.
    """
    best = (0.0, float("inf"))
    for _ in range(PINGS):
        began, since = time.time(), time.perf_counter()
        connection.sendall(b"t")
        (there,) = TIME.unpack(_exactly(connection, TIME.size))
        trip = time.perf_counter() - since
        if trip < best[1]:
            best = (there - began - trip / 2, trip)
    return best


def send_rate(connection: socket.socket, size: int) -> float:
    """Bytes per second at which a peer takes `size` bytes, until it says that it has them all."""
    connection.settimeout(60)
    piece = bytes(PIECE_BYTES)
    began = time.perf_counter()
    connection.sendall(b"d" + LENGTH.pack(size))
    for _ in range(size // PIECE_BYTES):
        connection.sendall(piece)
    _exactly(connection, 1)
    return size / (time.perf_counter() - began)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += _some(connection, count - len(data))
    return data


def _some(connection: socket.socket, count: int) -> bytes:
    if not (data := connection.recv(count)):
        raise ConnectionError("the other side closed the connection")
    return data
