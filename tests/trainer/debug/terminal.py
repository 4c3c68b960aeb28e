"""A terminal of a test's own, on which a program runs."""

import os
import pty
import select
import subprocess
import sys
import time


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        """arguments: of the Python interpreter. environment: added to this process's."""
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            preexec_fn=lambda: os.login_tty(theirs),  # as a shell's: Ctrl-C is a signal
        )
        os.close(theirs)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._ours, b"\x03")

    def type(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\n")

    def read(self, until: bytes = b"", *, seconds: float) -> bytes:
        """What comes until `until` has come, or the time is over."""
        shown, end = b"", time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not (until and until in shown):
            if select.select([self._ours], [], [], left)[0]:
                try:
                    shown += os.read(self._ours, 1 << 16)
                except OSError:  # the program has ended
                    break
        return shown

    def wait(self) -> int:
        """The exit code of the program, once it has ended."""
        return self._process.wait(timeout=60)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)
