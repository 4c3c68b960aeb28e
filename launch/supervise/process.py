"""Whether a process that is known from a file still runs."""

import os
import socket
from pathlib import Path

from common import processes

CLOCK_SECONDS = 2.0  # by which the kernel's time of its start, in whole seconds, may be off


def begin(pid: int) -> str:
    """Return when the process began, in ticks since the machine did, with the machine's start: no other
    process has the same. "" where there is none, or it has ended and is a zombie.
    """
    found = processes.stat(pid)
    if found is None or found.has_ended:
        return ""
    try:
        return f"{found.began_ticks} {processes.boot_id()}"
    except OSError:  # a kernel that has only a part of /proc, as sandboxes do
        return ""


def has_run_since(pid: int, since: float) -> bool:
    """Whether process `pid` of this machine runs, and began before `since`, in seconds since 1970: a later
    process may have got the number of one that has ended.
    """
    ticks = begin(pid).partition(" ")[0]
    if not ticks:
        return False
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return int(boot.split()[1]) + int(ticks) / os.sysconf("SC_CLK_TCK") <= since + CLOCK_SECONDS


def this_process() -> dict[str, str | int]:
    """Return this process as `is_alive` takes it from a file."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "began": begin(os.getpid())}


def is_alive(process: object) -> bool | None:
    """Whether the process that `this_process` described runs; None where that cannot be seen from here."""
    if not isinstance(process, dict):
        return None
    pid, host, began = (process.get(key) for key in ("pid", "host", "began"))
    if host != socket.gethostname() or not began or not isinstance(pid, int):
        return None
    return begin(pid) == began
