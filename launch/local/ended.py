"""How the ranks of one machine ended: as one exit code and one error."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.exit_codes import (
    ASKED_TO_STOP,
    FAILED,
    INTERRUPTED,
    NOBODY_READS,
    of_request,
    request_in_words,
)
from launch.local.local_rank import LocalRank
from launch.local.rank_output import show_line
from launch.supervise.policy import signal_name
from trainer.checkpoint.folder import before_first_step, goes_on

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@dataclass
class StopRequests:
    """Requests to stop, and how the ranks answered.

    stop_seconds: in which a rank has to answer.
    arrived: SIGTERM, SIGHUP, SIGINT and a second SIGINT, in the order in which they came first.
    warned: SIGUSR1 came.
    unresponsive: the ranks that were killed because they had not left after `stop_seconds`.
    """

    stop_seconds: float
    arrived: list[int] = field(default_factory=list)
    warned: bool = False
    unresponsive: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """The end of all ranks.

    code: the program's exit code.
    signal: the signal that ended the first rank to fail; 0: none did.
    rank: the first rank to fail; None where none failed.
    asked_to_stop: a request to stop had come.
    under_way: the first step was done.
    error: the supervisor's own line about the end, not shown yet; "" where the rank's says it all.
    """

    code: int
    signal: int = 0
    rank: int | None = None
    asked_to_stop: bool = False
    under_way: bool = False
    error: str = ""

    def show_error(self) -> int:
        """Show the line that was not shown yet; return the exit code."""
        if self.error:
            show_line(f"error: {self.error}".encode())
        return self.code


def ended(ranks: Sequence[LocalRank], stops: StopRequests, folder: Path | None) -> Ended:
    """Show the error of the first rank to fail; return how the ranks, all of which have ended, did so."""
    failed = [rank for rank in ranks if rank.failed]
    _show_errors_of_survivors(ranks, failed)
    asked = bool(stops.arrived or stops.warned)
    under_way = any(rank.under_way for rank in ranks)
    if not failed:
        code = max(rank.process.returncode for rank in ranks)
        return Ended(code, asked_to_stop=asked, under_way=under_way)
    # Where nobody reads what one has printed, the others fail by its end, and may be seen to end before it.
    unread = [rank for rank in failed if rank.process.returncode == NOBODY_READS]
    first = min(unread or failed, key=lambda rank: rank.failed_at)
    code, error = first.process.returncode, ""
    has_error = bool(first.output.held_back or first.output.showed_error)
    ended_early = -code in STOPS and not first.under_way and not has_error
    if code < 0 and (stops.arrived or stops.unresponsive or ended_early):
        asked = True
        exit_code, error = _ended_by_signal(-code, stops, folder)
    else:
        exit_code = FAILED if code < 0 else code
        first.output.show_held_back()
        if code < 0 and not has_error:
            hint = " (out of memory? see the kernel's log)" if -code == signal.SIGKILL else ""
            error = f"rank {first.number} was ended by {signal_name(-code)}{hint}"
        elif not has_error and code not in (*ASKED_TO_STOP, NOBODY_READS):
            error = f"rank {first.number} ended with exit code {code} and said nothing"
    return Ended(
        exit_code,
        signal=max(0, -code),
        rank=first.number,
        asked_to_stop=asked,
        under_way=under_way,
        error=error,
    )


def _show_errors_of_survivors(ranks: Sequence[LocalRank], failed: Sequence[LocalRank]) -> None:
    """Show what ranks that did not fail had held back, the same lines once."""
    shown: list[list[bytes]] = []
    for rank in ranks:
        if rank not in failed and rank.output.held_back not in shown:
            rank.output.show_held_back()
            shown.append(rank.output.held_back)


def _ended_by_signal(number: int, stops: StopRequests, folder: Path | None) -> tuple[int, str]:
    """Return exit code and line where the signal `number` ended the first rank after a request to stop.

    A rank that does not handle signals yet is ended by one: there was nothing to save. A rank that was
    killed because it did not end in time has lost what came after its last checkpoint.
    """
    request = stops.arrived[-1] if stops.arrived else number
    how = request_in_words(request)
    after = f"; {goes_on(folder)}" if folder is not None else ""
    if stops.unresponsive:
        ranks = ", ".join(map(str, stops.unresponsive))
        return (
            FAILED,
            f"{how}, and rank {ranks} did not answer within {stops.stop_seconds:g} s: killed{after}",
        )
    if number in STOPS and len(stops.arrived) < 2:
        early = ": nothing was under way" if folder is None else before_first_step(folder)
        return of_request(request), f"{how} before the first step{early}"
    code = INTERRUPTED if request == signal.SIGINT else FAILED
    return code, f"{how}, and killed before the state was saved{after}"
