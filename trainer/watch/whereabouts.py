"""Where one rank is at a moment: its phases, how long they have lasted, and in which call its threads are."""

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common import processes
from parallel.messages.last_collective import unfinished
from trainer.watch import phases as names
from trainer.watch.phases import Bounds, Phases
from trainer.watch.stacks import Stack, call, is_service, stacks

MOST_STACK_BYTES = 32 << 10  # of one rank's stacks as text

DEBUGGER, COMPILER = "debugger", "compiler"

# proc(5): the state of a process whose threads do not answer.
_STATES = {
    "T": "it is stopped by a signal (SIGSTOP?)",
    "t": "a debugger holds it",
    "D": "it waits in the kernel, for a disk or a file server",
    "Z": "it has ended",
}
GONE = "its process is gone"
RUNS = "it runs, but none of its Python threads does: a call into C does not let go of the interpreter"
HELD_BY_DEBUGGER = _STATES["t"]


@dataclass(frozen=True)
class Standing:
    """Where one track of a rank is.

    track: "main" or "save".
    phase, step, detail: as of `phases.Phase`.
    seconds: how long the phase has lasted.
    bound_seconds: how long it may last.
    call: in which call the track's thread is, in words.
    waits: whether the thread waits there for other ranks.
    """

    track: str
    phase: str
    step: int
    detail: str
    seconds: float
    bound_seconds: float
    call: str = ""
    waits: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the phase has lasted longer than it may."""
        return self.seconds > self.bound_seconds

    @property
    def place(self) -> str:
        """The phase for a sentence, such as `step 7`."""
        if self.phase == names.STEP:
            return f"step {self.step}"
        if self.phase in (names.START, names.END):
            return f"the {self.phase} of the run{f' ({self.detail})' if self.detail else ''}"
        return f"the {self.phase} after step {self.step}"


@dataclass(frozen=True)
class Whereabouts:
    """Where one rank is.

    rank, host: which one, and its machine.
    standings: of each track that is in a phase.
    unfinished: the collectives that are under way on it.
    held: DEBUGGER or COMPILER where its main thread is in one, else "".
    key: the same for two ranks whose phases, calls and stacks are the same.
    """

    rank: int
    host: str
    standings: tuple[Standing, ...]
    unfinished: tuple[str, ...] = ()
    held: str = ""
    key: str = ""

    def standing(self, track: str) -> Standing | None:
        """Where a track is. Where it is in no phase: where the main thread is."""
        by_track = {standing.track: standing for standing in self.standings}
        return by_track.get(track) or by_track.get("main")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Whereabouts":
        standings = tuple(Standing(**standing) for standing in document["standings"])
        return cls(**{**document, "standings": standings, "unfinished": tuple(document["unfinished"])})


def look(phases: Phases, bounds: Bounds, *, rank: int, host: str) -> tuple[Whereabouts, str]:
    """Return where this rank is, and the stacks of its threads as text."""
    found = [stack for stack in stacks() if not is_service(stack)]
    pending = unfinished()
    main = next((stack for stack in found if stack.thread == threading.main_thread().ident), None)
    held = DEBUGGER if main and main.is_in_debugger else COMPILER if main and main.compiles else ""
    standings = tuple(
        standing
        for track in phases.tracks
        if (standing := _standing(phases, bounds, track.name, found, pending, held)) is not None
    )
    place = repr((_without_times(standings), pending, _outline(found)))
    key = hashlib.sha256(place.encode()).hexdigest()[:16]
    text = "\n".join(stack.text() for stack in found)
    return Whereabouts(rank, host, standings, tuple(pending), held, key), text[-MOST_STACK_BYTES:]


def _standing(
    phases: Phases, bounds: Bounds, name: str, found: Sequence[Stack], pending: Sequence[str], held: str
) -> Standing | None:
    track = next(track for track in phases.tracks if track.name == name)
    if (phase := track.now) is None:
        return None
    bound = bounds.of(phase.name, track.durations(phase.name))
    if held == COMPILER:
        bound = max(bound, bounds.first_seconds)
    stack = next((stack for stack in found if stack.thread == track.thread), None)
    return Standing(
        name,
        phase.name,
        phase.step,
        phase.detail,
        round(phases.elapsed(phase), 1),
        round(bound, 1),
        call(stack, found) if stack else "",
        stack.waits_for_ranks(pending) if stack else False,
    )


def _without_times(standings: Sequence[Standing]) -> list[tuple[Any, ...]]:
    return [(s.track, s.phase, s.step, s.detail, s.call, s.waits) for s in standings]


def _outline(found: Sequence[Stack]) -> list[tuple[Any, ...]]:
    """The stacks without line numbers, which differ between ranks that wait in one loop."""
    return sorted((stack.name, *((f.file, f.function) for f in stack.frames)) for stack in found)


def state_of_process(pid: int) -> str:
    """Return why a process of this machine may not answer, in words; "" where the system does not tell."""
    if processes.stat(os.getpid()) is None:
        return ""
    found = processes.stat(pid)
    return _STATES.get(found.state, RUNS) if found else GONE


def this_process() -> int:
    """The identifier of this process on its machine."""
    return os.getpid()
