"""A debugger's prompt on a terminal that shows the live line."""

import os
import pty
import select
import subprocess
import sys
import time

import pytest

STOPPED = """
from trainer.metrics.progress import Progress
progress = Progress(10)
progress.step(1, {"loss": 1.5})
CALL
progress.step(10, {"loss": 2.5})
progress.close()
print("over")
"""


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, program: str) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        os.close(theirs)

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

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.mark.parametrize("call", ["breakpoint()", "import pdb; pdb.set_trace()"])
def test_a_debuggers_prompt_is_not_painted_over(call: str) -> None:
    terminal = Terminal(STOPPED.replace("CALL", call))
    try:
        assert "━".encode() in terminal.read(b"(Pdb) ", seconds=60)  # there was a bar
        assert terminal.read(seconds=0.8) == b""  # three redraws
        terminal.type("p 6 * 7")
        assert terminal.read(b"(Pdb) ", seconds=60) == b"p 6 * 7\r\n42\r\n(Pdb) "
        terminal.type("c")
        assert b"step 10/10  loss 2.500" in terminal.read(b"over", seconds=60)
    finally:
        terminal.close()
