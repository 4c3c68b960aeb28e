"""Which device a rank computes on."""

import os
from collections.abc import Mapping

import torch

from parallel.world.launcher import SLURM, launcher_variables


def device_of(environ: Mapping[str, str], local_rank: int) -> torch.device:
    """The device for a rank: CUDA where there is one, unless GERMINAL_DEVICE says cpu.

    ValueError where GERMINAL_DEVICE names no device, or one that this machine does not have, or where the
    machine has fewer GPUs than ranks.
    """
    wanted = environ.get("GERMINAL_DEVICE", "")
    if wanted not in ("", "cpu", "cuda"):
        raise ValueError(
            f"GERMINAL_DEVICE={wanted}: choose cpu or cuda, or unset it: cuda where there is one"
        )
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"GERMINAL_DEVICE=cuda: torch {torch.__version__} finds no CUDA device on this machine; see "
            "nvidia-smi and CUDA_VISIBLE_DEVICES, or choose cpu"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    _let_segments_grow()
    count = torch.cuda.device_count()
    if count == 1 and launcher_variables(environ) == SLURM:
        local_rank = 0  # with --gpus-per-task each task sees its own GPU only
    if local_rank >= count:
        raise ValueError(
            f"local rank {local_rank} has no GPU: this machine has {count}; start fewer ranks a node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


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
