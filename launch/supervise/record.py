"""A supervisor's own lines in events.jsonl: each restart and the final stop."""

import contextlib
from pathlib import Path

from common.lock import FolderLock
from launch.supervise import process
from launch.supervise.policy import Again, Attempt, Decision
from trainer.folder.fence import Fence
from trainer.folder.run_folder import EVENTS
from trainer.record.events import EventLog
from trainer.record.sinks import drop_torn_tail


def record(folder: Path, attempt: Attempt, decision: Decision, *, kind: str = "", **fields: object) -> bool:
    """Write what follows an attempt into the run's events; return whether that could be done.

    Only between two attempts, when no rank of this supervisor runs. Ranks hold the run by its epoch, so the
    supervisor takes the next one: a rank of the attempt that is still alive, on a machine that was lost,
    writes nothing from then on. Where another start holds the folder, or it cannot be written, nothing is
    written and nothing fails.

    kind: of the event, where it is neither a restart nor the run's end.
    """
    try:
        lock = FolderLock.take(folder)
    except OSError:  # another process holds it, or there is no such folder
        return False
    kind = kind or ("restart" if isinstance(decision, Again) else "stop")
    about = {"rank": attempt.rank, "host": attempt.host, "code": attempt.code, **fields}
    if isinstance(decision, Again):
        about |= {"restart": decision.number, "from_step": attempt.saved_after}
        about["supervisor"] = process.this_process()  # while it lives, the ranks will be started
    try:
        fence = Fence(folder)
        fence.take()
        drop_torn_tail(folder / EVENTS)  # of a rank that was killed while it wrote
        with contextlib.closing(EventLog(folder / EVENTS, fence.check)) as events:
            events.event(kind, attempt.step, decision.reason, **about)
    except (OSError, RuntimeError):
        return False
    finally:
        lock.release()
    return True
