"""A connection that carries JSON messages, one a line. Imports no torch.

The kernel finds an end that is lost: a process that ends closes its connection, and an end that no packet
reaches for `LOST_SECONDS` is taken for gone. The kernel answers the probes, so a process that is busy, or
stopped in a debugger, is not taken for gone, and a link that is down for some seconds does no harm.

Any process may connect to rank 0's port. Until it is known to be a rank, a line of it is short, and what is
no message raises ValueError, whatever its bytes are.
"""

import contextlib
import errno
import json
import socket
import threading
from typing import Any

from parallel.world.addresses import plain

# An end that acknowledges nothing for this long is gone: 10 s of silence, then a probe every 5 s.
LOST_SECONDS = 30
_IDLE, _INTERVAL, _PROBES = 10, 5, 4
_OUT_OF_REACH = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)
# What a rank and rank 0 say first: another version of Germinal has another number.
PROTOCOL = "germinal/1"
# The longest line from a rank, and from a process that has not shown yet that it is one.
LONGEST_BYTES = 64 << 20
LONGEST_GREETING_BYTES = 1 << 12

Message = dict[str, Any]


class Connection:
    """This process's end of a connection. Any thread may send; one thread receives.

    rank: the rank at the other end; -1 until that is known.
    about: what that rank said of itself.
    is_member: the other end has shown that it is that rank.
    timed_out: the other end was out of reach; its process has not closed it.
    """

    def __init__(self, peer: socket.socket, rank: int = -1, about: Message | None = None) -> None:
        self.socket = peer
        self.rank = rank
        self.about = about or {}
        self.is_member = rank >= 0
        self.timed_out = False
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._received = bytearray()
        keep_alive(peer)
        peer.setblocking(False)

    @property
    def host(self) -> str:
        """The name of the other rank's machine; empty until it has said so."""
        return str(self.about.get("host", ""))

    @property
    def address(self) -> str:
        """The address of the other end, in words where it has gone."""
        with contextlib.suppress(OSError):
            return plain(str(self.socket.getpeername()[0]))
        return "a process that has gone"

    def send(self, message: Message | bytes) -> bool:
        """Send a message, or the line of one, without waiting. Return False where the kernel's buffer is
        full: `flush` when it is not.
        """
        with self._lock:
            self._unsent += message if isinstance(message, bytes) else line(message)
            return self._flush()

    def flush(self) -> bool:
        """Send what `send` has left; return whether nothing is left."""
        with self._lock:
            return self._flush()

    def _flush(self) -> bool:
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
        except BlockingIOError:
            return False
        except OSError as error:  # the other end is gone, which `receive` reports, but no longer why
            self.timed_out |= error.errno in _OUT_OF_REACH
            self._unsent.clear()
        return True

    def receive(self) -> tuple[list[Message], bool]:
        """Return the messages that are complete, and whether more may come.

        ValueError where the other end sends something else than messages.
        """
        searched = len(self._received)
        longest_bytes = LONGEST_BYTES if self.is_member else LONGEST_GREETING_BYTES
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return [], True
        except OSError as error:
            self.timed_out |= error.errno in _OUT_OF_REACH
            return [], False
        self._received += data
        messages: list[Message] = []
        while (end := self._received.find(b"\n", searched)) >= 0:
            if end > longest_bytes:
                break
            messages.append(parse(self._received[:end]))
            del self._received[: end + 1]
            searched = 0
        if len(self._received) > longest_bytes:
            raise ValueError(f"a line of more than {longest_bytes} bytes")
        return messages, bool(data)

    def close(self) -> None:
        """Close this end. A thread that receives from it sees the end."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def line(message: Message) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message).encode() + b"\n"


def parse(text: bytes | bytearray) -> Message:
    """Return the message of a line. ValueError where the line is none."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):  # thousands of brackets
        raise ValueError("a line that is no message") from None
    if not isinstance(message, dict):
        raise ValueError("a line that is no message")
    return message


def receive_line(peer: socket.socket, longest_bytes: int = LONGEST_GREETING_BYTES) -> Message:
    """Wait for one message on a blocking socket; the other end must send nothing after it until it has had an
    answer.

    TimeoutError: the socket's own. ConnectionError where the other end closes, or sends no message.
    """
    received = b""
    while not received.endswith(b"\n"):
        data = peer.recv(longest_bytes)
        received += data
        if not data or len(received) > longest_bytes:
            raise ConnectionError("closed without an answer")
    with contextlib.suppress(ValueError):
        return parse(received)
    raise ConnectionError("not a rank of Germinal")


def keep_alive(peer: socket.socket) -> None:
    """Have the kernel take an end that is out of reach for gone after LOST_SECONDS.

    Keep-alive probes find it while nothing is under way, TCP_USER_TIMEOUT while something is: without it,
    data that nobody acknowledges is sent again for a quarter of an hour.
    """
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (
        ("TCP_KEEPIDLE", _IDLE),
        ("TCP_KEEPINTVL", _INTERVAL),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", LOST_SECONDS * 1000),
    )
    for name, value in options:
        if hasattr(socket, name):  # not every system has all of them
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
