"""This terminal, connected with the pdb of a rank: see `trainer.debug.debugger`."""

import contextlib
import os
import select
import socket
import sys
import threading
from pathlib import Path

LOOKS_EVERY_SECONDS = 0.1


def attach(path: Path) -> None:
    """Pass what is typed on to the debugger at the socket `path`, and show what it writes, until it hangs up.

    OSError where nobody listens there. The end of the input (Ctrl-D) leaves the debugger.
    """
    typing = True
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        while True:
            ready, _, _ = select.select([peer, *([sys.stdin.fileno()] if typing else [])], [], [])
            if peer in ready:
                shown = peer.recv(1 << 16)
                if not shown:
                    return
                os.write(sys.stdout.fileno(), shown)
                continue
            typed = os.read(sys.stdin.fileno(), 1 << 12)
            typing = bool(typed)
            with contextlib.suppress(BrokenPipeError):
                peer.sendall(typed) if typed else peer.shutdown(socket.SHUT_WR)


class DebugTerminal:
    """Connects this terminal, in a thread, with each rank of this machine that enters a debugger, one after
    another.

    folder: where ranks make their sockets; and the file `left`, when the pdb of a rank that has failed is
        left: that rank then ends, and the others with it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="debugger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking for ranks. All have ended, and so has what was connected to them."""
        self._closed.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._closed.wait(LOOKS_EVERY_SECONDS):
            for path in sorted(self._folder.glob("rank-*")):
                if (self._folder / "left").exists():
                    return
                # Made, and not listened at yet; or its rank has been ended meanwhile.
                with contextlib.suppress(ConnectionRefusedError, FileNotFoundError, ConnectionResetError):
                    attach(path)
