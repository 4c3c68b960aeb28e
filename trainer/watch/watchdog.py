"""The thread that looks whether this rank's phases last too long, and what follows where one does.

    any rank    a phase is over its bound        → tells rank 0, again every RESEND_SECONDS
    rank 0      asks every rank where it is; waits where a debugger holds one or one compiles; else writes
                faults/hang-….txt, prints three lines, writes the event, and tells all ranks to end
    any rank    has told rank 0, and not been asked for PATIENCE_SECONDS: rank 0 itself is stopped. It reports
                what it knows; of several such ranks the first, which is the one that makes the file

Every rank then ends with exit code 1, and whoever started the ranks starts them again. A rank that is stopped
cannot end itself: who started it kills it.

No false alarm: time in which the process did not run (stopped and continued, machine paused) does not count,
and neither does time in a debugger. A thread that holds the interpreter inside a call into C holds this
thread too; the other ranks then find that the rank does not answer.
"""

import contextlib
import math
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from common.exit_codes import FAILED
from common.standard_error import write_line
from trainer.watch.messages import Channel, Messages
from trainer.watch.phases import Bounds, Phases
from trainer.watch.report import MOST_STACKS, Finding, document, find, grouped
from trainer.watch.whereabouts import DEBUGGER, HELD_BY_DEBUGGER, Standing, Whereabouts

INTERVAL_SECONDS = 1.0  # between two looks
RESEND_SECONDS = 30.0
FIRST_PATIENCE_SECONDS = 15.0  # until rank 0 asks, once it is told
PATIENCE_SECONDS = 60.0  # from then on, while rank 0 asks all and writes the report
WRITE_SECONDS = 10.0  # the run folder's file system may be what hangs
# A look that comes so much too late: the process has not been running meanwhile.
STOOD_STILL_SECONDS = 5.0
SEND_SECONDS = 0.2  # for the message to the other ranks to go out
MOST_COMPLAINTS = 8  # lines about errors of the watchdog itself
LATER_SECONDS = 2.0  # a rank that does not report ends so much later than the one that does

_OVER, _END = "hang/over", "hang/end"

# (text of the file, its finding, the phase) → where the file is. FileExistsError where another rank made it.
Write = Callable[[str, Finding, Standing], str]


class Watchdog:
    """Watches the phases of this rank, from `begin` to `stop`.

    phases, bounds: what the rank does, and how long that may last.
    channel: to the other ranks.
    write: writes the file and the event.
    reporting: entered while this rank reports, so that another rank's end does not end it meanwhile.
    ended: whether some rank has ended, so that nothing that now waits for it is a hang.
    leave: ends this process with an exit code.
    heading: the first line of the file.
    """

    def __init__(
        self,
        phases: Phases,
        bounds: Bounds,
        channel: Channel,
        *,
        write: Write,
        reporting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        ended: Callable[[], bool] = lambda: False,
        leave: Callable[[int], Any] = os._exit,
        heading: Callable[[], str] = lambda: "hang",
    ) -> None:
        self._phases, self._bounds, self._channel = phases, bounds, channel
        self._write, self._reporting, self._ended = write, reporting, ended
        self._leave, self._heading = leave, heading
        self._interval_seconds = min(INTERVAL_SECONDS, bounds.hang_seconds / 4)
        self._wake = threading.Event()
        self._stopped = False
        # On rank 0: the last that a rank has told. Another thread appends.
        self._told = deque[Standing](maxlen=1)
        self._complaints: set[str] = set()
        self._over_since = self._sent_at = 0.0  # time.monotonic
        self._held_until = -math.inf  # by the clock of `phases`: a compiler or a debugger held a rank last
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._messages = Messages(channel, phases, bounds)
        channel.handle(_OVER, self._hear)
        channel.handle(_END, self._end)

    def begin(self) -> None:
        """Watch from here on: the ranks have met."""
        self._messages.introduce()
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(1.0)  # it may be asking the other ranks

    # In the watchdog's thread

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stopped:
            self._wake.wait(self._interval_seconds)
            self._wake.clear()
            late = time.monotonic() - looked - self._interval_seconds
            if late > STOOD_STILL_SECONDS:
                self._phases.stood_still(late)
            try:
                self._look()
            except Exception as bug:  # no reason to end a run that may be well, nor to look no longer
                self._complain(bug)
            looked = time.monotonic()

    def _look(self) -> None:
        over = self._over()
        told = self._told.pop() if self._told else None
        suspected = over or told
        if suspected is not None and self._ended():
            return
        if self._channel.rank == 0:
            if suspected is not None:
                self._collect(suspected)
        elif over is None:
            self._over_since = 0.0
        else:
            self._tell(over)

    def _complain(self, bug: Exception) -> None:
        where = traceback.extract_tb(bug.__traceback__)[-1]
        text = f"{type(bug).__name__}: {bug} ({where.filename}:{where.lineno})"
        if text not in self._complaints and len(self._complaints) < MOST_COMPLAINTS:
            self._complaints.add(text)
            told = " ".join(text.split())
            write_line(f"rank {self._channel.rank}: the watchdog could not look, and looks again: {told}")

    def _over(self) -> Standing | None:
        """The phase of this rank that has lasted too long, if one has."""
        if not any(self._may_be_over(track.name) for track in self._phases.tracks):
            return None
        here, _ = self._messages.here()
        if here.held == DEBUGGER:
            self._phases.stood_still(self._interval_seconds)
            return None
        return next((standing for standing in here.standings if standing.is_over), None)

    def _may_be_over(self, name: str) -> bool:
        track = next(track for track in self._phases.tracks if track.name == name)
        if (phase := track.now) is None:
            return False
        seconds = self._phases.elapsed(phase)
        if seconds <= self._bounds.hang_seconds:  # the usual case, which needs no median
            return False
        return seconds > self._bounds.of(phase.name, track.durations(phase.name))

    # On another rank than 0

    def _tell(self, over: Standing) -> None:
        """Tell rank 0; report in its place where it does not ask."""
        now = time.monotonic()
        if not self._over_since:
            self._over_since, self._sent_at = now, 0.0
        if now > self._sent_at + RESEND_SECONDS:
            self._sent_at = now
            self._channel.send(_OVER, vars(over))
        asked_at = self._messages.asked_at
        patience = PATIENCE_SECONDS if asked_at > self._over_since else FIRST_PATIENCE_SECONDS
        if now > max(self._over_since, asked_at) + patience:
            self._report_alone(over)

    def _report_alone(self, over: Standing) -> None:
        here, text = self._messages.here()
        state = self._messages.state_of_rank_0()
        if state == HELD_BY_DEBUGGER:
            self._over_since = 0.0
            return
        finding = find(over, [here], {0: state}, {0: self._channel.host_of(0)})
        self._declare(over, finding, [here], {0: state}, {here.rank: text})

    # On rank 0

    def _collect(self, over: Standing) -> None:
        """Find out where all ranks are, and declare the hang, or wait where it is none (yet)."""
        if self._ended():
            return
        found = self._messages.where()
        if not any(standing.is_over for member in found for standing in member.standings) and found:
            return  # it has gone on meanwhile
        if any(member.held == DEBUGGER or _still_compiles(member) for member in found):
            self._held_until = self._phases.clock()
            return
        # A compiler, or a debugger, that has just let a rank go is part of every rank's time in this phase.
        if self._phases.clock() < self._held_until + over.bound_seconds:
            return
        silent = self._messages.states(set(range(self._channel.world)) - {member.rank for member in found})
        if self._ended() or HELD_BY_DEBUGGER in silent.values():
            return
        finding = find(over, found, silent, {rank: self._channel.host_of(rank) for rank in silent})
        shown = [group.ranks[0] for group in grouped(found, finding.ranks)[:MOST_STACKS]]
        self._declare(over, finding, found, silent, self._messages.stacks(shown))

    # Messages

    def _hear(self, sender: int, over: Mapping[str, Any]) -> None:
        self._told.append(Standing(**over))
        self._wake.set()

    def _end(self, sender: int, payload: Any) -> None:
        if self._channel.rank != 0:
            self._leave(FAILED)

    # The end

    def _declare(
        self,
        over: Standing,
        finding: Finding,
        found: Sequence[Whereabouts],
        silent: Mapping[int, str],
        stacks: Mapping[int, str],
    ) -> None:
        """Report, and end the ranks."""
        if self._stopped:
            return
        # To the end: when the other ranks end, this rank's main thread must not report that as a failure.
        with self._reporting():
            try:
                text = document(finding, found, silent, stacks, heading=self._heading())
                for line in _lines(finding, self._written(text, finding, over)):
                    write_line(line)
                if self._channel.rank == 0:
                    self._channel.broadcast(_END)
                    time.sleep(SEND_SECONDS)
            finally:
                self._leave(FAILED)

    def _written(self, text: str, finding: Finding, over: Standing) -> str:
        """Write the file in a thread of its own, for its folder may be what hangs; return where it is, or why
        there is none. Where another rank made it: end.
        """
        where = [f"no file, for it could not be written within {WRITE_SECONDS:g} s"]

        def write() -> None:
            try:
                where[0] = self._write(text, finding, over)
            except FileExistsError:
                where[0] = ""
            except Exception as error:
                where[0] = f"no file: {error}"

        writer = threading.Thread(target=write, name="report", daemon=True)
        writer.start()
        writer.join(WRITE_SECONDS)
        if not where[0]:
            time.sleep(LATER_SECONDS)
            self._leave(FAILED)
        return where[0]


def _lines(finding: Finding, file: str) -> Iterator[str]:
    """The lines for the terminal. None begins with `error: `: `germinal train` keeps back such a line.
    Where it starts the ranks again, it does not show the line.
    """
    first, second, third = finding.lines
    yield first
    yield f"  {second}"
    yield f"  {third.format(file=file)}"


def _still_compiles(member: Whereabouts) -> bool:
    main = member.standing("main")
    return member.held != "" and main is not None and not main.is_over
