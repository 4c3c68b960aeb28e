"""What a check is: a function from the circumstances to findings, with a limit on its time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.doctor.finding import Finding, Level


@dataclass(frozen=True)
class Circumstances:
    """What checks are told.

    folders: where runs and corpora lie, or will; the first is the run folder's.
    environ: the environment variables of the job.
    host: the node's name, as messages give it; empty where the doctor looks at one machine alone.
    """

    folders: tuple[Path, ...]
    environ: Mapping[str, str]
    host: str = ""

    @property
    def one_of_several(self) -> bool:
        """Whether this machine is one node of several."""
        return bool(self.host)


@dataclass(frozen=True)
class Check:
    """A subject that is examined in a process of its own.

    subject: the first part of its findings' names.
    run: yields findings as it makes them.
    seconds: the process is killed after this time, and that is a finding.
    if_stuck: the level of that finding.
    when_stuck: its remedy.
    """

    subject: str
    run: Callable[[Circumstances], Iterator[Finding]]
    seconds: float
    if_stuck: Level
    when_stuck: str
