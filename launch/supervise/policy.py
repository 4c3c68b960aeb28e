"""What follows when the ranks of a run have ended: one pure function of the attempts so far.

An attempt is one start of all ranks. A supervisor (of the ranks of this machine, or of one srun step at a
time) describes each attempt that has ended, and does what `decide` answers.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from common.exit_codes import ASKED_TO_STOP, DONE, FAILED, STOPPED, WRONG

# Seconds before each further start without a new checkpoint. The first follows at once; a file system or a
# machine that is away may take minutes to come back.
WAITS = (0.0, 10.0, 60.0, 300.0)
SAME_STEP = 3  # failures at one step, without a new checkpoint in between, after which a run is given up
_OVER = (DONE, WRONG, *ASKED_TO_STOP)


@dataclass(frozen=True)
class Attempt:
    """How one start of all ranks ended.

    code: the exit code; negative: the signal that ended the first rank to fail, as of `subprocess`.
    step: the last step that is known to be done.
    saved_before: the step of the newest committed checkpoint before the attempt; 0: there was none.
    saved_after: the same after the attempt.
    asked_to_stop: the supervisor was asked to stop (SIGTERM, SIGUSR1, Ctrl-C) or its time is over.
    under_way: the first step of this attempt was done.
    repeats: the run itself says that the failure comes again, bit for bit.
    hung: the ranks ended because one of them hung.
    host_lost: the machine of a rank does not answer any more.
    folder_lost: the run folder was moved or removed, or another start of the run has taken it over.
    rank: the first rank to fail; None where it is not known.
    host: its machine; "" where it is not known.
    """

    code: int
    step: int = 0
    saved_before: int = 0
    saved_after: int = 0
    asked_to_stop: bool = False
    under_way: bool = False
    repeats: bool = False
    hung: bool = False
    host_lost: bool = False
    folder_lost: bool = False
    rank: int | None = None
    host: str = ""

    @property
    def has_saved(self) -> bool:
        """Whether the attempt brought the run forward for good."""
        return self.saved_after > self.saved_before

    @property
    def exit_code(self) -> int:
        """The exit code of the whole: that of the ranks, FAILED where a signal ended one."""
        return FAILED if self.code < 0 else self.code

    def __str__(self) -> str:
        """Return who ended, where and how: `rank 1 on n2 was ended by SIGKILL at step 41`."""
        who = "the run" if self.rank is None else f"rank {self.rank}"
        on = f" on {self.host}" if self.host else ""
        when = f"at step {self.step}" if self.under_way else "before its first step was done"
        if self.folder_lost and self.under_way:
            when = "at a step that is not known"  # for the record of it is gone
        if self.host_lost:
            return f"{who}{on} was lost with its machine {when}"
        if self.hung:
            return f"{who}{on} hung {when}"
        if self.code < 0:
            return f"{who}{on} was ended by {signal_name(-self.code)} {when}"
        return f"{who}{on} failed with exit code {self.code} {when}"


@dataclass(frozen=True)
class Again:
    """Start the ranks again, from the newest checkpoint.

    reason: one line: who ended how, and which restart this is.
    wait_seconds: before the start. A request to stop that comes meanwhile ends the run with STOPPED.
    number: which start without a new checkpoint in between this is, from 1.
    """

    reason: str
    wait_seconds: float = 0.0
    number: int = 1


@dataclass(frozen=True)
class Leave:
    """End with the exit code `code`: the ranks' own end says all. `reason`: in words, for a record."""

    code: int
    reason: str


@dataclass(frozen=True)
class Stop:
    """End with FAILED, and say the reason: what failed has failed too often."""

    reason: str
    code: int = FAILED


Decision = Again | Leave | Stop


def decide(attempts: Sequence[Attempt], *, restarts: int) -> Decision:
    """Return what follows the last of the `attempts`, which are in the order in which they ran.

    Not started again is a run
    - that is done, was asked to stop, is held by another process or has a wrong config (0, 75, 130, and 2
      at the first start);
    - whose very first start failed before its first step: nothing has changed since, and the same start
      would fail again, unless a machine was lost, or a rank hung, as on a file server that is away;
    - whose folder is not its own any more: a new one would begin there from step 0;
    - that says itself that its failure must repeat;
    - that failed `SAME_STEP` times in a row at one step;
    - that was started `restarts` times since its last new checkpoint.

    restarts: how often ranks are started again without a new checkpoint in between (supervise.restarts).
    """
    last = attempts[-1]
    # The config of a later start has run before: a path in it is away, such as a disk that is not mounted.
    passes = last.code == WRONG and len(attempts) > 1 and not last.under_way
    if (last.code in _OVER and not passes) or last.asked_to_stop:
        return Leave(last.exit_code, _in_words(last))
    if last.folder_lost:
        return Stop(
            f"{last}, and the run folder was moved or removed, or another start of the run has taken it "
            "over: not started again"
        )
    if len(attempts) == 1 and not last.under_way and not (last.host_lost or last.hung):
        return Leave(last.exit_code, f"{last}: the first start failed")
    if last.repeats:
        return Leave(last.exit_code, f"{last}, which would come again at every start")
    number = _restarts_since_progress(attempts) + 1
    if restarts == 0:
        return Leave(last.exit_code, f"{last}; supervise.restarts=0: not started again")
    if _same_step(attempts):
        return Stop(
            f"{last}, the {_ordinal(SAME_STEP)} time at this step: not started again; see the errors above "
            "and faults/ in the run folder; the same command goes on" + _from(last)
        )
    if number > restarts:
        return Stop(
            f"{last}: {restarts} restart{'s' * (restarts > 1)} without a new checkpoint "
            f"(supervise.restarts): not started again; the same command goes on{_from(last)}"
        )
    return Again(
        f"{last}: starting again{_from(last)} (restart {number} of {restarts})",
        WAITS[min(number, len(WAITS)) - 1],
        number,
    )


def _restarts_since_progress(attempts: Sequence[Attempt]) -> int:
    """How many of the attempts at the end, the last one included, were restarts that saved nothing new."""
    count = 0
    for index in range(len(attempts) - 1, 0, -1):
        if attempts[index].has_saved:
            break
        count += 1
    return count


def _same_step(attempts: Sequence[Attempt]) -> bool:
    latest = attempts[-SAME_STEP:]
    return (
        len(latest) == SAME_STEP
        and len({attempt.step for attempt in latest}) == 1
        and all(attempt.under_way for attempt in latest)
        and not any(attempt.has_saved for attempt in latest[1:])
    )


def _from(last: Attempt) -> str:
    return f" from step {last.saved_after}" if last.saved_after else " from the beginning: nothing is saved"


def _in_words(last: Attempt) -> str:
    if last.code == DONE:
        return "done"
    if last.code == WRONG:
        return "the command line or the config is wrong"
    if last.code in ASKED_TO_STOP:
        if last.code == STOPPED and not last.asked_to_stop:
            return "to be run again"
        return "asked to stop" if last.code == STOPPED else "interrupted"
    return f"asked to stop, and {last}"


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def signal_name(number: int) -> str:
    """Return SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
