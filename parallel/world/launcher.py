"""What a launcher tells its processes by environment variables: which rank each is. Torch-free."""

import os
from collections.abc import Mapping

# (rank, world, local rank) under torchrun, accelerate and deepspeed; then SLURM; then Open MPI (deepspeed
# --launcher openmpi).
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    SLURM,
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)

# Variables of launchers that are the parent of their ranks: our supervisor, torchrun and accelerate, srun,
# Open MPI, deepspeed. A rank that was started by hand may outlive its shell.
_PARENTS = ("GERMINAL_INIT", "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK", "CROSS_RANK")


def launcher_variables(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The names of the launcher's variables for rank, world and local rank; None without a launcher."""
    return next((keys for keys in _LAUNCHERS if keys[0] in environ and keys[1] in environ), None)


def identity(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, world, local rank); (0, 1, 0) without a launcher. ValueError where the variables contradict."""
    keys = launcher_variables(environ)
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


def is_child_of_launcher(environ: Mapping[str, str]) -> bool:
    """Whether the launcher is the parent of its ranks, so that they must end when it does."""
    return any(name in environ for name in _PARENTS)
