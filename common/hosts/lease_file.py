"""The file of a lease, `.lease-N`: its owner, a counter, whether it was freed. See `common.hosts.lease`."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common import processes

BYTES = 512  # of the file, always: the counter is written in place
# A lease as old as this, by this host's clock against the file's time, is shown as nobody's. To look only.
SHOWN_SECONDS = 600.0
_NAME = re.compile(r"\.lease-(\d{1,18})")


@dataclass(frozen=True)
class Owner:
    """A process that may hold a lease.

    kernel: what tells the kernel and its process numbers from all others; "" where that is not known.
    began: when the process began, in that kernel's ticks.
    """

    host: str
    pid: int
    kernel: str = ""
    began: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def has_ended(self) -> bool:
        """Whether this kernel knows that the process has ended; False for a process of another kernel."""
        if not self.kernel or self.kernel != this_process().kernel:
            return False
        found = processes.stat(self.pid)
        return found is None or found.has_ended or found.began_ticks != self.began


def this_process() -> Owner:
    """Return this process as the owner of a lease."""
    host, pid = socket.gethostname()[:100], os.getpid()
    found = processes.stat(pid)
    try:
        numbers = os.stat("/proc/self/ns/pid").st_ino  # a container counts its processes anew
        kernel = f"{host} {processes.boot_id()} {numbers}"
    except OSError:
        kernel = ""
    return Owner(host, pid, kernel if found else "", found.began_ticks if found else 0)


@dataclass(frozen=True)
class Found:
    """What a lease file holds. owner: None where the file is still empty, or damaged."""

    content: bytes
    owner: Owner | None
    is_free: bool

    def may_be_had(self) -> bool:
        """Whether nobody needs to be waited for."""
        return self.is_free or (self.owner is not None and self.owner.has_ended())


def path_of(folder: Path, epoch: int) -> Path:
    """Return the file of a lease."""
    return folder / f".lease-{epoch}"


def content_of(owner: Owner, token: str, beat: int, *, is_free: bool) -> bytes:
    """Return what a lease file holds. token: what tells this taking of it from any other."""
    record = {"beat": beat, "free": is_free, "token": token, **asdict(owner)}
    return json.dumps(record).encode().ljust(BYTES - 1) + b"\n"


def holder(folder: Path) -> str:
    """Return the process that seems to hold the lease of `folder`, "" where none does. Waits for nobody: the
    file's time is compared with this host's clock, which is good enough to look at.
    """
    try:
        epoch, found = newest(folder, 0)
        if found is None or found.may_be_had():
            return ""
        age = time.time() - path_of(folder, epoch).stat().st_mtime
    except OSError:
        return ""
    return str(found.owner or "another process") if age < SHOWN_SECONDS else ""


def epochs_in(folder: Path) -> list[int]:
    """Return the epochs of the lease files in `folder`, ascending."""
    return sorted(int(found[1]) for name in os.listdir(folder) if (found := _NAME.fullmatch(name)))


def newest(folder: Path, known: int) -> tuple[int, Found | None]:
    """Return the highest epoch, and its file's content; None where there is no such file.

    known: an epoch that is known to be taken, though a listing that is remembered does not show it.
    """
    epoch = max([known, *epochs_in(folder)])
    if not epoch:
        return 0, None
    try:
        content = path_of(folder, epoch).read_bytes()
    except FileNotFoundError:  # its successor has removed it, and this listing is an old one
        return epoch, Found(b"", None, False)
    try:
        record = json.loads(content)
        owner = Owner(*(record[name] for name in ("host", "pid", "kernel", "began")))
        return epoch, Found(content, owner, record["free"] is True)
    except (ValueError, KeyError, TypeError):
        return epoch, Found(content, None, False)
