"""What is to be run: a config, its overrides, the number of ranks. Nothing is executed here."""

import sys
from dataclasses import dataclass, field, replace

RANK = "trainer"  # modules of the trainer that `launch` starts as processes
VERIFY = "trainer.verify.command"
GENERATE = "trainer.generate.command"
EVALUATE = "trainer.evaluate.command"
EXPORT = "trainer.export.command"
TRANSFER = "trainer.transfer.command"
DOCTOR = "trainer.doctor.command"
DEBUG = "trainer.debug.command"

# One process whatever the config's layout: law 1 says that the result is the same.
ONE_PROCESS = (
    "train.ranks=[]",
    "parallel.layouts=[]",
    "parallel.dp_replicate=1",
    "parallel.dp_shard=1",
    "parallel.cp=1",
    "parallel.tp=1",
    "parallel.pp=1",
)


@dataclass(frozen=True)
class Job:
    """A run of several ranks: each is `python -m MODULE [options] CONFIG [key=value…]`.

    config: path of the YAML file or of the run folder.
    overrides: key=value of the command line, in its order.
    nproc: number of ranks.
    module: the module that a rank runs.
    options: arguments of the module before CONFIG.
    threads: CPU threads of a rank (see `trainer.process.cores`); 0: as the environment says.
    """

    config: str
    overrides: tuple[str, ...] = ()
    nproc: int = 1
    module: str = RANK
    options: tuple[str, ...] = ()
    threads: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words after the module."""
        return (*self.options, self.config, *self.overrides)

    def alone(self) -> "Job":
        """Return the same run in one process, whatever its layout."""
        return replace(self, overrides=(*self.overrides, *ONE_PROCESS), nproc=1)

    def reference(self) -> "Job":
        """Return the run that `verify` compares every layout with: one process of the torch engine that
        recomputes, compiles and offloads nothing.
        """
        plain = (
            *("parallel.engine=torch", "parallel.recompute=none", "parallel.compile=false"),
            *("parallel.offload_optimizer=none", "parallel.offload_parameters=none"),
        )
        return replace(self.alone(), overrides=(*self.alone().overrides, *plain))


@dataclass(frozen=True)
class ProcessCommand:
    """A process to start.

    argv: its command line.
    env: what is added to the environment of this process.
    descriptors: of this process, which the new one has too, under the same numbers.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line that runs `module` with the interpreter of this process.

    -P: the module is this installation's, also where the working directory has one of that name.
    """
    start = () if module == RANK else ("trainer.process.entry",)
    return (sys.executable, "-P", "-m", *start, module, *arguments)
