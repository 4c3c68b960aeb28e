"""How a run that nobody runs now has ended, as its events tell: for a run without a submission. Changes
nothing.
"""

import contextlib
import re
import socket
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from common.exit_codes import DONE, FAILED, STOPPED
from launch.cluster.progress import Events, Progress
from launch.supervise import process
from launch.supervise.evidence import newest_saved
from launch.supervise.policy import WAITS

# For a supervisor on another machine, which cannot be asked: the longest wait before a start, and the start.
TRUSTED_SECONDS = max(WAITS) + 300.0
# As `launch.local.keep_running` writes it.
_HEADING = re.compile(rb"^=== (\S+) start \d+ by process (\d{1,10}) on (\S+):", re.MULTILINE)
_TELLING = ("start", "save", "fault", "hang", "restart", "stop")


@dataclass(frozen=True)
class LastEnd:
    """state, reason: as of `state.Status`. code: the exit code; None where it is not known."""

    state: str
    reason: str = ""
    code: int | None = None


def restarting(events: Events) -> str:
    """Return why the ranks are being started again; "" where they are not: the last start is newer than the
    last restart, or the supervisor that wrote it has ended.
    """
    last = events.last(("start", "restart", "stop"))
    if last is None or last.get("kind") != "restart" or "supervisor" not in last:
        return ""
    alive = process.is_alive(last["supervisor"])
    if alive is None:
        alive = _age(last) < TRUSTED_SECONDS
    return _reason(last) if alive else ""


def supervised(folder: Path) -> str:
    """Return the `germinal train` of this machine that started the ranks last, if it still runs; "" if not.
    Between the end of rank 0 and the next start nobody holds the run folder.
    """
    headings: list[tuple[bytes, bytes, bytes]] = []
    for name in ("rank-00000.log.1", "rank-00000.log"):  # the older part first
        with contextlib.suppress(OSError):
            headings += _HEADING.findall((folder / "logs" / name).read_bytes())  # of bounded size
    if not headings:
        return ""
    written, pid, host = (part.decode(errors="replace") for part in headings[-1])
    try:
        since = datetime.fromisoformat(written).timestamp()
    except ValueError:
        return ""
    if host != socket.gethostname() or not process.has_run_since(int(pid), since):
        return ""
    return f"process {pid} on {host}"


def last_end(folder: Path, far: Progress, events: Events) -> LastEnd:
    """Return how the run in `folder` ended. far: how far it is; events: its own."""
    last = events.last(_TELLING)
    stopped = last is not None and last["kind"] == "stop" and "code" not in last  # by the ranks
    if far.is_finished and not stopped:  # else it was asked to stop in the evaluation after the last step
        return LastEnd("done", "done", DONE)
    step = far.step or 0
    saved = newest_saved(folder)
    newest = f"newest checkpoint {saved}" if saved else "no checkpoint"
    if last is None:
        return LastEnd("stopped", f"after step {step}, {newest}" if step else "it has not begun")
    kind, at = last["kind"], last.get("step")
    if stopped:  # a supervisor gives its exit code
        return LastEnd("stopped", _reason(last), STOPPED)
    # A fault that a run survives, such as a damaged checkpoint, is followed by steps.
    if kind == "stop" or (kind in ("fault", "hang") and isinstance(at, int) and at >= step):
        return LastEnd("failed", f"ended by a fault: {_reason(last)}", FAILED)
    if kind == "restart":
        return LastEnd("stopped", f"ended before the start that was to follow: {_reason(last)}")
    where = f"after step {step}" if step else "before its first step was done"
    return LastEnd("stopped", f"killed without a word {where}, {newest}")


def _reason(event: dict[str, Any]) -> str:
    return " ".join(str(event.get("reason", "")).split())


def _age(event: dict[str, Any]) -> float:
    """Seconds since the event; infinite where its time cannot be read."""
    try:
        return time.time() - datetime.fromisoformat(str(event.get("time"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return float("inf")
