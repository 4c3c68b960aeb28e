"""One run a folder: of two that write to the same logs, each would lose the other's lines."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path

# What a filesystem without locks answers.
_NONE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class FolderLock:
    """A run folder held by this process, until `release` or its end, however it ends: the kernel lets go.

    `unsupported` says why there is no lock where the filesystem has none; "" where it is held.
    """

    def __init__(self, descriptor: int, unsupported: str = "") -> None:
        self._descriptor = descriptor
        self.unsupported = unsupported

    @classmethod
    def take(cls, folder: Path, *, patience_seconds: float = 3.0) -> FolderLock:
        """Hold `folder`, which must exist. A run that is ending gets `patience_seconds` to end.

        BlockingIOError, naming the process that holds it, where it is in use: that passes by itself. Any
        other OSError where it can't be written.
        """
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise BlockingIOError(
                    f"{folder} is in use by {holder or 'another process'}: run the same command again when "
                    "that has ended, or give this run another name or run_dir"
                ) from None
            except OSError as error:
                os.close(descriptor)
                if error.errno not in _NONE:
                    raise
                return cls(-1, f"{folder}: the filesystem has no locks ({os.strerror(error.errno)})")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let go. The file stays: removing it would let two runs hold two files of one name."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
