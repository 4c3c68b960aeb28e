"""What a launcher tells its processes by environment variables: which rank each is. Torch-free."""

import os
from collections.abc import Mapping

from parallel.world import slurm

# (rank, world, local rank) under torchrun, accelerate and deepspeed; then SLURM; then Open MPI (deepspeed
# --launcher openmpi).
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    SLURM,
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)

# Variables of launchers that are the parent of their ranks: our supervisor, torchrun and accelerate, Open
# MPI, deepspeed; and srun (see `slurm.is_task_of_srun`). A rank that was started by hand may outlive its
# shell.
_PARENTS = (
    "GERMINAL_INIT",
    "GERMINAL_UNDER_WAY",
    "TORCHELASTIC_RUN_ID",
    "OMPI_COMM_WORLD_RANK",
    "CROSS_RANK",
)


def launcher_variables(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The names of the launcher's variables for rank, world and local rank; None without a launcher."""
    return next((keys for keys in _LAUNCHERS if keys[0] in environ and keys[1] in environ), None)


def identity(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, world, local rank); (0, 1, 0) without a launcher.

    ValueError where the variables contradict; or where SLURM has given several tasks or nodes to the job, and
    srun has not started this process as one of them: it would wait for the others, or train alone.
    """
    keys = launcher_variables(environ)
    if keys in (None, SLURM) and not slurm.is_task_of_srun(environ):
        _refuse_unstarted(environ)
        if keys is None:
            _refuse_half(environ)
        return 0, 1, 0
    if keys is None:
        return 0, 1, 0
    found = {key: environ[key] for key in keys if key in environ}
    try:
        rank, world, local_rank = (int(found.get(key, "0")) for key in keys)
    except ValueError:
        told = ", ".join(f"{key}={value}" for key, value in found.items())
        raise ValueError(f"{told}: not numbers; start with a launcher") from None
    if not 0 <= rank < world:
        raise ValueError(f"{keys[0]}={rank} is outside {keys[1]}={world}")
    return rank, world, local_rank


def is_first(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher's variables say that this process is rank 0, or say nothing."""
    keys = launcher_variables(environ)
    return keys is None or environ[keys[0]] == "0"


def _refuse_unstarted(environ: Mapping[str, str]) -> None:
    """ValueError in a batch script, salloc's shell or on the submit host, where the job has several tasks."""
    for name in ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"):
        if environ.get(name, "1") not in ("", "1"):
            raise ValueError(
                f"{name}={environ[name]}, and srun has not started this process: start all ranks with `srun "
                "germinal rank CONFIG [key=value…]`, or those of one machine with `germinal train`"
            )


def _refuse_half(environ: Mapping[str, str]) -> None:
    """ValueError where RANK or WORLD_SIZE alone states several ranks: each of them would train alone."""
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if environ.get(name, "") not in ("", "0" if name == "RANK" else "1"):
            raise ValueError(
                f"{name}={environ[name]} without {other}: set both, or neither for a run of one rank"
            )


def is_supervised(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a supervisor of ours watches the ranks, and so reports the run's end: that of `germinal train`,
    or one that sets GERMINAL_SUPERVISED.
    """
    return "GERMINAL_UNDER_WAY" in environ or "GERMINAL_SUPERVISED" in environ


def is_child_of_launcher(environ: Mapping[str, str]) -> bool:
    """Whether the launcher is the parent of its ranks, so that they must end when it does."""
    return any(name in environ for name in _PARENTS) or slurm.is_task_of_srun(environ)


def cpus_per_task(environ: Mapping[str, str]) -> int:
    """The CPUs that SLURM gives each task; 0 where it does not say. Without the plugin task/affinity or
    task/cgroup a task may run on all CPUs of the node, and this number is all that tells its share.
    """
    told = environ.get("SLURM_CPUS_PER_TASK", "")
    return int(told) if launcher_variables(environ) == SLURM and told.isdecimal() else 0
