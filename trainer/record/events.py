"""`events.jsonl`: what happened to a run besides its steps, each with its reason.

Rank 0 writes the file, and so do the rank that notices another's end, finds a hang or damaged data, or fails
itself. An NFS client appends where it believes that the file ends, and would write over the line of another
host: it asks the server once it has locked the file, and has sent its own line before it unlocks (nfs(5)).
So each line is written under a lock (flock) of the file itself.
"""

import contextlib
import fcntl
import socket
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.folder.fence import Guard, unfenced
from trainer.record.reading import objects
from trainer.record.sinks import JsonlLog

ENDED_EARLY = "early_stop"
"""Kind of the event of a run that ends before its last step, because its evaluations get no better."""

CUT = "cut"
"""Kind of the event of a corpus whose documents are longer than a row, so that what they ask is left out."""

# How long a line waits for another process that writes one, which may have been stopped meanwhile.
APART_SECONDS = 2.0

SHOWN = (
    CUT,
    ENDED_EARLY,
    "fault",
    "heldout",
    "quarantine",
    "resume",
    "rewind",
    "schedule",
    "skip",
    "tracker",
)  # what a user at the terminal wants to see


def read_events(path: Path, start: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the events of a file from the position `start` on, the oldest first; none where there is no file.
    A line that is damaged, or still being written, is left out. OSError where the file cannot be read.
    """
    for _, values in objects(path, start):
        if values is not None and isinstance(values.get("kind"), str):
            yield values


def ended_early(path: Path, step: int) -> bool:
    """Whether the events of a run say that it ended early after `step`."""
    return any(event["kind"] == ENDED_EARLY and event.get("step") == step for event in read_events(path))


class EventLog(JsonlLog):
    """Starts, resumes, saves, faults, skips: `{time, kind, step, reason, …}`, never rewritten by a resume.

    path: the file; None on ranks that do not report, where events are dropped.
    guard: raises where this process may write no more.
    shown: print events of the kinds in `SHOWN`, which did not go as planned, on standard error too; False
        where the user reads them in another way.

    Safe to call from several threads.
    """

    def __init__(self, path: Path | None, guard: Guard = unfenced, *, shown: bool = True) -> None:
        super().__init__(path or Path(), guard)
        self._on = path is not None
        self._shown = shown

    def event(self, kind: str, step: int, reason: str, **fields: Any) -> None:
        """Record that `kind` (one word, such as "resume" or "fault") happened at `step`, and why. A
        fault has the rank and the host that it happened on.
        """
        if self._on:
            if kind == "fault":  # rank 0 writes the events; a rank that writes its own fault says its number
                fields = {"rank": 0, "host": socket.gethostname()} | fields
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self.write({"time": now, "kind": kind, "step": step, "reason": reason, **fields})
            if self._shown and kind in SHOWN:
                print(f"{kind} at step {step}: {reason}", file=sys.stderr, flush=True)

    def _append(self, descriptor: int, line: bytes) -> None:
        with _apart(descriptor):
            super()._append(descriptor, line)


@contextlib.contextmanager
def _apart(descriptor: int) -> Iterator[None]:
    """Keep other processes out, on other hosts too, where the file system has locks; else go on without."""
    until = time.monotonic() + APART_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        except OSError:  # no locks
            break
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
