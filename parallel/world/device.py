"""Which device a rank computes on."""

import os
import re
from collections.abc import Mapping

import torch

from parallel.world.launcher import SLURM, launcher_variables


def device_of(environ: Mapping[str, str], local_rank: int) -> torch.device:
    """The device for a rank: CUDA where there is one, unless GERMINAL_DEVICE says cpu.

    Raises:
        ValueError: GERMINAL_DEVICE names no device.
        RuntimeError: the machine has no CUDA, which GERMINAL_DEVICE asks for, or fewer GPUs than ranks: a GPU
            may have fallen off the machine, and the run may go on after a reboot or on another one.
    """
    wanted = environ.get("GERMINAL_DEVICE", "")
    if wanted not in ("", "cpu", "cuda"):
        raise ValueError(
            f"GERMINAL_DEVICE={wanted}: choose cpu or cuda, or unset it: cuda where there is one"
        )
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"GERMINAL_DEVICE=cuda: torch {torch.__version__} finds no CUDA device on this machine; see "
            "nvidia-smi and CUDA_VISIBLE_DEVICES, or choose cpu"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    _let_segments_grow()
    device = torch.device("cuda", gpu_index(environ, local_rank, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def gpu_index(environ: Mapping[str, str], local_rank: int, visible: int) -> int:
    """Which of the GPUs that this process sees a rank computes on. RuntimeError where there is none for it.

    Mostly all ranks of a machine see all of its GPUs. With `srun --gpus-per-task` a task sees its own; where
    the cluster does not confine tasks, it sees those of all, in the order of the tasks. `--gpu-bind=single`
    gives neighbours the same set. A wrapper may give each rank a CUDA_VISIBLE_DEVICES of its own.

    environ: the launcher's variables.
    visible: number of GPUs that this process sees.
    """
    by_srun = launcher_variables(environ) == SLURM
    own = _gpus_per_task(environ) if by_srun else 0
    index = local_rank
    if own:
        index = 0 if visible <= own else local_rank * own
    elif by_srun and environ.get("SLURM_GPU_BIND", "").startswith("single"):
        index = local_rank % max(1, visible)
    elif visible == 1 and (by_srun or environ.get("CUDA_VISIBLE_DEVICES")):
        index = 0  # ranks that share it nevertheless are found when they meet
    if index >= visible:
        raise RuntimeError(
            f"local rank {local_rank} has no GPU: this machine has {visible}; start fewer ranks a node, or "
            "see nvidia-smi whether one has failed"
        )
    return index


def _gpus_per_task(environ: Mapping[str, str]) -> int:
    """N of `--gpus-per-task=N` and `--tres-per-task=gres/gpu:N`, with or without a type; 0 without either."""
    found = re.search(r"(\d+)$", environ.get("SLURM_GPUS_PER_TASK", "")) or re.search(
        r"gpu(?::\w+)?[:=](\d+)", environ.get("SLURM_TRES_PER_TASK", "")
    )
    return int(found[1]) if found else 0


def gpu_id(device: torch.device) -> str:
    """The unique id of a GPU, by which ranks that took the same one are found; empty on a CPU."""
    if device.type != "cuda":
        return ""
    return str(torch.cuda.get_device_properties(device).uuid)


def _let_segments_grow() -> None:
    """Have the CUDA allocator extend its segments, unless the user has set an allocator option.

    FSDP's streams free blocks of fixed sizes, and the gaps between them fit nothing that is allocated later.
    Torch reads the variable at the first allocation, so it is set before that (torch's notes on CUDA
    semantics).
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
