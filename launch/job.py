"""What is to be run: a config, its overrides, how many ranks. Pure: nothing is executed here."""

import sys
from dataclasses import dataclass, field, replace

# One process whatever the config's layout: law 1 says that the result is the same.
ONE_PROCESS = (
    "parallel.dp_replicate=1",
    "parallel.dp_shard=1",
    "parallel.cp=1",
    "parallel.tp=1",
    "parallel.pp=1",
)


@dataclass(frozen=True)
class Job:
    """A run of `nproc` ranks on this machine: `python -m MODULE [options] CONFIG [key=value…]` each.

    threads: CPU threads of a rank; 0: as the environment says. See `trainer.process.cores`.
    """

    config: str
    overrides: tuple[str, ...] = ()
    nproc: int = 1
    module: str = "trainer"
    options: tuple[str, ...] = ()
    threads: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows the module."""
        return (*self.options, self.config, *self.overrides)

    def alone(self) -> "Job":
        """The same run in one process, whatever its layout."""
        return replace(self, overrides=(*self.overrides, *ONE_PROCESS), nproc=1)

    def reference(self) -> "Job":
        """What every layout is held against: one process of the torch engine, nothing recomputed."""
        plain = (
            *("parallel.engine=torch", "parallel.recompute=none", "parallel.compile=false"),
            *("parallel.offload_optimizer=none", "parallel.offload_parameters=none"),
        )
        return replace(self.alone(), overrides=(*self.alone().overrides, *plain))


@dataclass(frozen=True)
class Command:
    """A process to start: its arguments, and what its environment has besides this one's."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line that runs `module` with the interpreter that runs this.

    -P: the module is this installation's, also where the working directory has one of that name.
    """
    start = () if module == "trainer" else ("trainer.process.entry",)
    return (sys.executable, "-P", "-m", *start, module, *arguments)
