"""What one srun step prints: lines of the ranks, each with its rank, and srun's own about their ends."""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from common.exit_codes import FAILED
from common.standard_error import write
from launch.local.rank_log import RankLog
from launch.local.rank_output import LINE_BYTES

_LABELLED = re.compile(rb" *(\d+): ?(.*)")
_TASKS = re.compile(r"srun: error: (\S+): tasks? (\d+)([\d,-]*): (.+)")
_LOST = re.compile(r"srun: error: (?:Node failure on (\S+)|Task launch for \S+ failed on node (\S+):)")
_MISSING = re.compile(r"(?: *\d+: ?)?slurmstepd: error: execve\(\): .+: No such file or directory")
_SIGNALS = {signal.strsignal(number): int(number) for number in signal.valid_signals()}


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended, as srun says.

    code: its exit code; negative: the signal that ended it.
    rank: the lowest of those of which srun told at once.
    host: the node on which it ran.
    """

    code: int
    rank: int
    host: str


@dataclass
class StepOutput:
    """Shows what a step prints, keeps each rank's lines in its log, and remembers the first failure.

    world: number of ranks.
    new_log: makes the log of a rank.
    first: the first rank that did not end with 0.
    signals: rank → the signal that ended it, of those that srun told of as a single task.
    lost: nodes that srun lost.
    is_missing: a node lacks the program that starts a rank, such as a container's. The rank then ends with
        ENOENT, 2, which says nothing of the command line or the config.
    """

    world: int
    new_log: Callable[[int], RankLog]
    first: RankEnd | None = None
    signals: dict[int, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    is_missing: bool = False
    _logs: dict[int, RankLog] = field(default_factory=dict)
    _tail: bytes = b""

    def read(self, chunk: bytes) -> None:
        """Take what was printed next; an empty chunk is the end."""
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        if self._tail and (not chunk or len(self._tail) > LINE_BYTES):
            lines, self._tail = [*lines, self._tail], b""
        for line in lines:
            write(line + b"\n")
            self._keep(line)

    def close(self) -> None:
        """Close the ranks' logs."""
        for log in self._logs.values():
            log.close()

    def _keep(self, line: bytes) -> None:
        self.is_missing |= _MISSING.match(line.decode(errors="replace")) is not None
        labelled = _LABELLED.fullmatch(line)
        if labelled and (rank := int(labelled[1])) < self.world:
            if rank not in self._logs:
                self._logs[rank] = self.new_log(rank)
            self._logs[rank].line(labelled[2])
            return
        text = line.decode(errors="replace")
        if lost := _LOST.match(text):
            self.lost.append(lost[1] or lost[2])
        elif tasks := _TASKS.match(text):
            code = FAILED if self.is_missing else _code(tasks[4])
            if self.first is None:
                self.first = RankEnd(code, int(tasks[2]), tasks[1])
            if code < 0 and not tasks[3]:
                self.signals[int(tasks[2])] = -code


def _code(words: str) -> int:
    """Exit code, or the signal as a negative number, of srun's words, such as `Killed`."""
    if exited := re.match(r"Exited with exit code (\d+)", words):
        return int(exited[1])
    words = words.removesuffix(" (core dumped)").strip()
    return -_SIGNALS.get(words, signal.SIGKILL)  # SIGKILL also for `Out Of Memory`
