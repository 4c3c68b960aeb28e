"""Processes of this machine, as tests find and wait for them: by /proc."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.processes import stat


class Loud(subprocess.Popen[str]):
    """A program whose output goes to the file `log`."""

    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def until(
    ready: Callable[[], object], *running: "subprocess.Popen[str]", seconds: float = 120.0, what: str = ""
) -> None:
    """Wait for `ready`; fail with the programs' output where one of them ends before, or time is up."""
    by = time.monotonic() + seconds
    while not ready():
        ended = next((process for process in running if process.poll() is not None), None)
        told = "\n".join(p.said()[-4000:] for p in running if isinstance(p, Loud))
        assert ended is None, f"ended before {what}, with {ended.returncode}\n{told}"
        assert time.monotonic() < by, f"{seconds:g} s without {what}\n{told}"
        time.sleep(0.05)


@contextlib.contextmanager
def burning(processes: int = 4) -> Iterator[None]:
    """Keep the CPUs of this machine busy with that many processes."""
    burners = [
        subprocess.Popen(["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", "while True: pass"])
        for _ in range(processes)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def children(pid: int) -> list[int]:
    """Process ids of the children of a process; empty where it has ended."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def is_alive_in(pid: int, space: str) -> bool:
    found = stat(pid)
    with contextlib.suppress(OSError):
        return found is not None and not found.has_ended and os.readlink(f"/proc/{pid}/ns/pid") == space
    return False


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def variable(pid: int, name: str) -> str:
    """A variable of a process's environment as it was at its start; empty where there is none."""
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"):
            if word.startswith(f"{name}="):
                return word.removeprefix(f"{name}=")
    return ""
