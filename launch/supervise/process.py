"""Whether a process that is known from a file still runs."""

import os
import socket
from pathlib import Path


def begin(pid: int) -> str:
    """Return when the process began, in ticks since the machine did, with the machine's start: no other
    process has the same. "" where there is none, or it is dead and only not waited for.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{fields[19]} {boot}"


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
