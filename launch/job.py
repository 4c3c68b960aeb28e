"""What is to be run: a config, its overrides, how many ranks. Pure: nothing is executed here."""

import sys
from dataclasses import dataclass, field

# One process whatever the config's layout: law 1 says that the result is the same.
ONE_PROCESS = (
    "parallel.dp_replicate=1",
    "parallel.dp_shard=1",
    "parallel.tp=1",
    "parallel.pp=1",
)


@dataclass(frozen=True)
class Job:
    """One training run on this machine."""

    config: str
    overrides: tuple[str, ...] = ()
    nproc: int = 1

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows `python -m trainer`."""
        return (self.config, *self.overrides)


@dataclass(frozen=True)
class Command:
    """A process to start: its arguments, and what its environment has besides this one's."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line that runs `module` with the interpreter that runs this."""
    return (sys.executable, "-m", module, *arguments)
