"""One save of this rank: attempts at it, with the logs up to the step."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from common.retry import comes_again
from parallel.engine import Chunk, Engine, KeepsOnDisk
from trainer.checkpoint.folder import STATE
from trainer.checkpoint.saving.attempt import Attempt, RankIsGoneError, not_saved, write_json
from trainer.checkpoint.store import write_batches
from trainer.process.disk import explaining
from trainer.record.shared_log import Digest
from trainer.record.sinks import JsonlLog

ATTEMPTS, RETRY_SECONDS = 3, 5.0  # at one save where an error may pass; the first pause between two

Tell = Callable[..., None]
"""(kind, step, reason, further fields of the event)."""
"""(kind, step, reason) → writes an event."""

Batches = Callable[[], Iterable[Sequence[Chunk]]]
"""The state, in batches that are valid until the next is asked for; called once an attempt."""


def streamed(engine: Engine) -> Batches | None:
    """How to read the state batch by batch, where a part of it is on a disk; None where all is in memory."""
    if not isinstance(engine, KeepsOnDisk) or engine.batches() is None:
        return None
    return cast(Batches, engine.batches)


@dataclass
class Save:
    """What the saves of a run have in common on this rank.

    root: the run's folder of checkpoints.
    attempt: (root, step, nonce of the attempt) → this rank's part in an attempt.
    nonce: of this start.
    logs: forced to disk before a checkpoint is.
    digests: by the log's name; the checkpoint notes them.
    tell: for events.
    failed: a save has failed on some rank.
    """

    root: Path
    attempt: Callable[[Path, int, str], Attempt]
    nonce: str
    logs: Sequence[JsonlLog]
    digests: Mapping[str, Digest]
    tell: Tell
    failed: bool = False
    _saves: int = 0
    _told: list[Attempt] = field(default_factory=list)  # the attempts whose verdicts are still there

    def __call__(
        self, step: int, batches: Batches, document: dict[str, Any], then: Callable[[], list[int]]
    ) -> tuple[int, list[int]]:
        """Write and commit; return the checkpoint's bytes on rank 0, and what `then` returned on rank 0 after
        the commit.

        An error that may pass is told, and all ranks try again, `ATTEMPTS` times in all. RankIsGoneError
        where another rank has ended; RuntimeError, one line, where some rank could not write.
        """
        before: list[Attempt] = []
        self._saves += 1  # a run that went back comes to a step again, for which notes may be left
        for number in range(1, ATTEMPTS + 1):
            attempt = self.attempt(self.root, step, f"{self.nonce}-{self._saves}-{number}")
            try:
                with explaining(self.root.parent):
                    found = self._once(attempt, batches, document, then)
            except RankIsGoneError:
                raise
            except Exception as error:
                again = attempt.fail(error, is_last=number == ATTEMPTS)
                raised = not_saved(error, step, attempt.rank, attempt.world)
                more = f"; trying again ({number} of {ATTEMPTS - 1})" if again else ""
                # A supervisor that reads `repeats` does not start the ranks again.
                told = {"repeats": True} if comes_again(raised) else {}
                self.tell("fault", step, f"{raised}{more}", **told)
                self.failed = True
                if not again:
                    raise raised from error
                before.append(attempt)
                time.sleep(RETRY_SECONDS * 2 ** (number - 1))
            else:
                break
        self.failed = False
        if attempt.rank == 0:
            for failed in before:  # no rank is in its folder any more
                failed.remove()
            for earlier in (*self._told, *before):
                earlier.take_down()
            self._told = [attempt]
        return found

    def _once(
        self,
        attempt: Attempt,
        batches: Batches,
        document: dict[str, Any],
        then: Callable[[], list[int]],
    ) -> tuple[int, list[int]]:
        folder = attempt.begin()
        part = write_batches(folder, attempt.rank, batches())
        gone = [log.name for log in self.logs if log.sync()]
        if attempt.rank == 0:
            attempt.await_others()  # only then are all lines up to this step in the logs
            document["logs"] = self._noted(attempt.step, gone)
            part.files[STATE] = write_json(folder / STATE, document)
        attempt.publish(part)
        return attempt.finish(document["state"]["sequences"], then)

    def _noted(self, step: int, gone: Sequence[str]) -> dict[str, Any]:
        """Return length and hash of every log up to `step`. Lines that were lost since the last save are an
        event; `gone` names the logs that were deleted or replaced.
        """
        found = {}
        for name, log in self.digests.items():
            found[name] = log.at(step)
            if log.lost or name in gone:
                self.tell(
                    "fault",
                    step,
                    f"{log.path} was deleted, replaced or cut while the run wrote it: what is missing up to "
                    f"step {step} is lost, and the lines from there on go to the file that is there now",
                )
        return found
