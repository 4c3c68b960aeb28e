"""pdb where a rank has failed or called `breakpoint()`.

One process: pdb on this terminal. One rank of several has no terminal of its own. Under `germinal train
--nproc` its standard input is empty. torchrun starts each rank in a session of its own: all would read from
one standard input, and Ctrl-C would reach torchrun alone. There pdb listens at a Unix socket, in a folder
that only this user may enter, and `germinal attach SOCKET` connects a terminal with it. `germinal train
--debug --nproc N` does that by itself.
"""

from __future__ import annotations

import bdb
import contextlib
import pdb
import socket
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from common.standard_error import write_line

MOST_PATH = 60  # characters of the folder in which a folder for sockets is made


class Debugger(Protocol):
    """What follows a failure."""

    def post_mortem(self, error: BaseException) -> None:
        """Show the error, and let the user look at the frame that raised it, if anybody can."""


class NoDebugger:
    """For a process without a terminal: the traceback is all there is."""

    def post_mortem(self, error: BaseException) -> None:
        traceback.print_exception(error)


class TerminalDebugger:
    """pdb on the terminal of this process."""

    def post_mortem(self, error: BaseException) -> None:
        traceback.print_exception(error)
        pdb.post_mortem(error.__traceback__)


class WaitingRank:
    """For a rank beside the one that is debugged: after its own failure it waits until it is ended, since its
    end would end the others too.
    """

    def __init__(self, rank: int, chosen: int) -> None:
        self._rank, self._chosen = rank, chosen

    def post_mortem(self, error: BaseException) -> None:
        last = " ".join("".join(traceback.format_exception_only(error)).split())
        write_line(f"rank {self._rank} failed too, and waits for rank {self._chosen}: {last}")
        threading.Event().wait()


class SocketDebugger(pdb.Pdb):
    """pdb of one rank, at a socket. A connection lasts until the program is continued or pdb is left."""

    def __init__(self, path: Path, *, announced: bool) -> None:
        """path: of the socket. announced: print how to connect to it."""
        # Any file will do until somebody is connected: given one, pdb uses no terminal of this process.
        super().__init__(stdin=sys.stdin, stdout=sys.stderr, nosigint=True, readrc=False)
        self.use_rawinput = False
        self._path, self._announced = path, announced
        self._peer: socket.socket | None = None
        self._greeting = ""
        self._over = False

    def post_mortem(self, error: BaseException) -> None:
        self._greeting = "".join(traceback.format_exception(error))
        self.reset()
        self.interaction(None, error.__traceback__)
        (self._path.parent / "left").touch()
        self._hang_up()

    def at_breakpoint(self, *args: Any, **kwargs: Any) -> None:
        """For sys.breakpointhook."""
        self.set_trace(sys._getframe().f_back)

    def interaction(self, frame: FrameType | None, *args: Any) -> None:
        """Wait for a connection if there is none, and read commands from it."""
        self._over = False
        if self._peer is None:
            self._connect()
        super().interaction(frame, *args)
        if self._over and frame is not None:
            self._hang_up()

    def set_continue(self) -> None:
        super().set_continue()
        self._over = True

    def set_quit(self) -> None:
        super().set_quit()
        self._over = True

    def _connect(self) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self._path))
            listening.listen(1)
            if self._announced:
                write_line(
                    f"{self._path.name} on {socket.gethostname()} is in pdb: germinal attach {self._path}"
                )
            self._peer, _ = listening.accept()
            self._path.unlink()
        self.stdin = self._peer.makefile("r", encoding="utf-8", errors="replace")
        self.stdout = self._peer.makefile("w", encoding="utf-8", errors="backslashreplace")
        print(f"--- {self._path.name} ---\n{self._greeting}", file=self.stdout, flush=True)
        self._greeting = ""

    def _hang_up(self) -> None:
        if self._peer is None:
            return
        for stream in (self.stdout, self.stdin, self._peer):
            with contextlib.suppress(OSError, ValueError):  # the other side has gone
                stream.close()
        self._peer = None


def socket_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a new folder for sockets, which only this user may enter. The path of a socket has room for some
    100 bytes (unix(7)), and TMPDIR may be longer.
    """
    long = len(tempfile.gettempdir()) > MOST_PATH
    return tempfile.TemporaryDirectory(prefix="germinal-pdb-", dir="/tmp" if long else None)


def choose(rank: int, world: int, *, sockets: Path | None, only: int | None) -> Debugger:
    """Return the debugger of this rank, and make `breakpoint()` call it.

    sockets: the folder for the sockets of ranks; None: nobody will connect to one.
    only: the rank that is debugged; None: each that fails.
    """
    if world == 1 and sockets is None:
        return TerminalDebugger() if sys.stdin is not None and sys.stdin.isatty() else NoDebugger()
    if only not in (None, rank):
        sys.breakpointhook = _pass_by
        return WaitingRank(rank, only)
    if sockets is None:
        sys.breakpointhook = _pass_by
        return NoDebugger()
    debugger = SocketDebugger(sockets / f"rank-{rank}", announced=only is not None)
    sys.breakpointhook = debugger.at_breakpoint
    return debugger


def _pass_by(*args: Any, **kwargs: Any) -> None:
    """`breakpoint()` of a rank that has no debugger."""


LEFT = bdb.BdbQuit
"""What pdb raises where the user leaves it at a breakpoint."""
