"""How a rank reports a failure: a line on standard error, an event, a traceback and an exit code.

One fault often raises an error on several ranks. The notes on the error (`trainer.ranks`) say which rank
reports it, so that a user reads one line.
"""

import contextlib
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.exit_codes import FAILED
from common.retry import comes_again
from common.standard_error import complain
from parallel.world.arrivals import Departure
from parallel.world.runtime import Runtime
from trainer.folder.fence import Fence
from trainer.process.disk import explained
from trainer.ranks import BY_ANOTHER_RANK, IN_EVENTS, ON_EVERY_RANK
from trainer.record.events import EventLog
from trainer.record.sinks import last_step

# How long a rank waits for the rank that is to report the error, before it reports the error itself.
REPORT_SECONDS = 60.0
# How long a rank waits for the news of another's end: after an error of a collective, and after any other.
LINK_SECONDS, OWN_SECONDS = 5.0, 1.0
_COLLECTIVES = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


@dataclass(frozen=True)
class Failures:
    """Reports the failures of one rank.

    folder: the run folder.
    runtime: this rank, and what it learns of the end of others.
    fence: this start's right to write to `folder`.
    """

    folder: Path
    runtime: Runtime
    fence: Fence

    def report(self, error: Exception, code: int) -> int:
        """Print the error, unless another rank reports it; return `code`."""
        if not self._reported_elsewhere(error):
            with self.runtime.reporting():
                complain(f"{self._where(error)}{error}", code)
        return code

    def fail_or_follow(self, error: Exception) -> int:
        """Report a failure, unless another rank reports it, and return the exit code. Where another rank's
        end caused the error, that end and its exit code take its place; see `Runtime.should_report`.
        """
        if self._reported_elsewhere(error):
            return FAILED
        left = self._cause(error)
        with self.runtime.reporting():
            if left is None:
                return self.fail(error)
            code = FAILED if left.code is None else left.code
            return complain(left, code) if self.runtime.should_report(left) else code

    def fail(self, error: Exception) -> int:
        """Print a failure as one line and write its traceback into the run folder, if this start may write
        there; return the exit code.
        """
        what = explained(error, self.folder)
        where = self._where(error)
        if isinstance(error, MemoryError):  # often without a text
            found = f"out of memory ({what})" if what else "out of memory"
            what = f"{found}: lower data.seq_len, train.micro_batch or the model's sizes"
        elif type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU: its text names none of our keys
            what = f"{what}: lower train.micro_batch, set parallel.recompute=full or spread the model further"
        trace = self.folder / "faults" / f"rank-{self.runtime.rank:05d}.txt"
        try:
            self.fence.check()
            trace.parent.mkdir(exist_ok=True)
            trace.write_text("".join(traceback.format_exception(error)))
        except (OSError, RuntimeError):
            return complain(f"{where}{what}", FAILED)
        return complain(f"{where}{what} (traceback: {trace})", FAILED)

    def record(self, error: Exception, step: int) -> None:
        """Write the failure after `step` into events.jsonl, unless another rank or event reports it."""
        self.runtime.wait_while_reporting()  # what the watchdog reports ends other ranks, and so this step
        notes = getattr(error, "__notes__", ())
        if not notes and (left := self._cause(error)) is not None:
            self.record_lost(left, step)
            return
        if (
            IN_EVENTS in notes
            or BY_ANOTHER_RANK in notes
            or (ON_EVERY_RANK in notes and not self.runtime.is_writer)
        ):
            return
        # A supervisor that reads `repeats` does not start the ranks again.
        more = {"repeats": True} if comes_again(error) else {}
        self._event(step, " ".join(str(error).split()), rank=self.runtime.rank, **more)

    def record_lost(self, left: Departure, step: int | None = None) -> None:
        """Write the end of another rank into events.jsonl, if it is this rank's to do; see
        `Runtime.takes_note`. step: after which it was noticed; None: the last in metrics.jsonl.
        """
        if self.runtime.takes_note(left):
            at = last_step(self.folder) if step is None else step
            self._event(at, str(left), rank=left.rank, host=left.host)

    def _event(self, step: int, reason: str, **fields: Any) -> None:
        with (
            contextlib.suppress(OSError, RuntimeError),
            contextlib.closing(
                EventLog(self.folder / "events.jsonl", self.fence.check, shown=False)
            ) as events,
        ):
            events.event("fault", step, reason, **fields)

    def _cause(self, error: Exception) -> Departure | None:
        """The end of another rank that has caused an error, as far as is known."""
        if not isinstance(error, RuntimeError):
            return None
        # The news of the end may come later than the end of the connection that the collective used.
        if any(word in str(error) for word in _COLLECTIVES):
            return self.runtime.first_departure(LINK_SECONDS)
        # A supervisor of ours ends the other ranks once this rank has ended: no need to wait for their news.
        return self.runtime.first_departure(0.0 if self.runtime.is_supervised else OWN_SECONDS)

    def _reported_elsewhere(self, error: Exception) -> bool:
        """Whether another rank has reported this error and left. Wait for that rank where the notes say that
        it reports the error.

        False under `germinal train --nproc`: every rank reports, and the supervisor shows one of the errors.
        """
        if self.runtime.is_supervised:
            return False
        notes = getattr(error, "__notes__", ())
        is_rank_0s = (IN_EVENTS in notes or ON_EVERY_RANK in notes) and not self.runtime.is_writer
        if BY_ANOTHER_RANK not in notes and not is_rank_0s:
            return False
        left = self.runtime.first_departure(REPORT_SECONDS)
        # A rank without an exit code has died before it reported anything.
        self.runtime.has_reported = left is not None and left.code is not None
        return bool(self.runtime.has_reported)

    def _where(self, error: Exception) -> str:
        """Return "rank N: " for an error without a note, which may be this rank's alone. Return "" for one
        with a note, and where this is the only rank.
        """
        notes = getattr(error, "__notes__", ())
        has_note = not {IN_EVENTS, ON_EVERY_RANK, BY_ANOTHER_RANK}.isdisjoint(notes)
        needs_no_rank = has_note or self.runtime.world == 1
        return "" if needs_no_rank else f"rank {self.runtime.rank}: "
