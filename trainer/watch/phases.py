"""What a rank is doing and since when, and how long that may last.

A thread of the run that does one thing after the other has a track: the main thread, and the thread that
writes a checkpoint in the background. A track's phases follow one another (`Track.next`), or one lies inside
another (`Track.inside`), whose clock then stands still:

    main    start… | step 1 | step 2  (evaluation)  | step 3 | step 4  (copy) | step 5 | … | end
    save                                                          save ------------------

A phase hangs that lasts `hang_factor` times its median, and at least `hang_seconds`. A phase that has not
been seen `ENOUGH` times has no median: it may last `first_seconds`.

Recording costs a reading of the clock and no lock: each track is written by its own thread alone, and the
watchdog reads what is replaced as a whole.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

START = "start"  # up to the first step, and while the run goes back to an older checkpoint
STEP = "step"  # includes reading its micro-batches; excludes evaluation, copy and save
EVALUATION = "evaluation"  # some batches of it: see `trainer.evaluation.evaluate.BATCHES`
COPY = "copy"  # of the state, before a save writes it
SAVE = "save"  # writing a checkpoint, and waiting for the other ranks' parts of it
WAIT = "wait for the save"  # no bound of its own: the save has one
END = "end"  # closing what is open, after the last step or a failure

ENOUGH = 3  # durations that make a median
REMEMBERED = 64  # durations of a phase that the median is of: the last ones

Clock = Callable[[], float]


@dataclass(frozen=True)
class Bounds:
    """How long phases may last: the section `supervise:` of the config, in seconds."""

    hang_factor: float = 10.0
    hang_seconds: float = 120.0
    first_seconds: float = 1800.0

    def of(self, phase: str, durations: "deque[float]") -> float:
        """How long a phase may last that has lasted `durations` before."""
        if phase == WAIT:
            return math.inf
        if phase in (START, END) or len(durations) < ENOUGH:
            return max(self.hang_seconds, self.first_seconds)
        return max(self.hang_seconds, self.hang_factor * median(durations))


@dataclass(frozen=True)
class Phase:
    """A phase that a track is in.

    name: one of the names above.
    step: the step that the phase belongs to.
    detail: what exactly is done, where the name does not say; or "".
    since: when it began, by the clock of `Phases`; later by what the phases inside it took.
    """

    name: str
    step: int
    detail: str
    since: float

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


class Track:
    """The phases of one thread. Only that thread calls the methods that begin and end phases.

    name: "main" or "save".
    clock: as of `Phases`.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.thread = 0  # identifier of the thread (`threading.get_ident`)
        self._clock = clock
        self._open: tuple[Phase, ...] = ()  # each lies inside the one before it
        self._durations: dict[str, deque[float]] = {}
        self.start_seconds: dict[str, float] = {}  # how long each part of the start took, by its detail

    @property
    def now(self) -> Phase | None:
        """The phase that the track is in; the innermost one. None between phases."""
        phases = self._open
        return phases[-1] if phases else None

    def durations(self, phase: str) -> "deque[float]":
        """How long the phase lasted before, in seconds, the last `REMEMBERED` times."""
        return self._durations.get(phase, deque[float]()).copy()

    def next(self, name: str, step: int, detail: str = "") -> None:
        """End the phases of this track, and begin one."""
        now = self._clock()
        self._note(self._open, now)
        self.thread = threading.get_ident()
        self._open = (Phase(name, step, detail, now),)

    def done(self) -> None:
        """End the phases of this track."""
        self._note(self._open, self._clock())
        self._open = ()

    @contextmanager
    def inside(self, name: str, step: int | None = None, detail: str = "") -> Iterator[None]:
        """A phase inside the present one, which goes on afterwards. `step`: by default the present one's."""
        outer, began = self._open, self._clock()
        self.thread = threading.get_ident()
        at = step if step is not None else outer[-1].step if outer else 0
        inner = Phase(name, at, detail, began)
        self._open = (*outer, inner)
        try:
            yield
        finally:
            ended = self._clock()
            self._note((inner,), ended)
            self._open = tuple(replace(phase, since=phase.since + (ended - began)) for phase in outer)

    def _note(self, phases: tuple[Phase, ...], now: float) -> None:
        for phase in phases:
            known = self._durations.get(phase.name)
            if known is None:
                # A new dictionary, for the watchdog may be reading the other.
                known = deque(maxlen=REMEMBERED)
                self._durations = {**self._durations, phase.name: known}
            known.append(max(0.0, now - phase.since))
            if phase.name == START:
                before = self.start_seconds.get(phase.detail, 0.0)
                self.start_seconds[phase.detail] = before + now - phase.since


class Phases:
    """The tracks of one rank.

    clock: seconds, as `time.monotonic`, which does not go on while a machine is suspended.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._stood_still_seconds = 0.0
        self.main = Track("main", self.clock)
        self.save = Track("save", self.clock)

    @property
    def tracks(self) -> tuple[Track, ...]:
        return self.main, self.save

    def clock(self) -> float:
        """The time in which this process could run, in seconds."""
        return self._clock() - self._stood_still_seconds

    def stood_still(self, seconds: float) -> None:
        """Leave out a time in which this process did not run: stopped, or its machine paused."""
        self._stood_still_seconds += seconds

    def elapsed(self, phase: Phase) -> float:
        """How long a phase has lasted, in seconds."""
        return self.clock() - phase.since
