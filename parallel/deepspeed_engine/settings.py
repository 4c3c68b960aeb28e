"""DeepSpeed's config, and its needs on this machine: packages, a disk to offload to, compiled operators."""

import contextlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parallel.config import ParallelConfig
from parallel.layout.layout import Layout
from parallel.relied_on import borrow

_NEEDED = ("deepspeed", "accelerate", "transformers")
_REDUCE_BUCKET_ELEMENTS = 200_000_000  # DeepSpeed allocates one such buffer, or two where it overlaps
_LONGEST_COMPILE_MINUTES = 15
_SWAP_BUFFER_ELEMENTS = 100_000_000  # its own default


def check(cfg: ParallelConfig) -> None:
    """ValueError, one line, for a package that is not installed or a folder that cannot be offloaded to."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"parallel.engine=deepspeed needs {', '.join(missing)}: pip install 'germinal[deepspeed]', "
            "or use parallel.engine=torch"
        )
    for key in ("offload_optimizer", "offload_parameters"):
        if getattr(cfg, key) == "nvme" and not os.access(cfg.nvme_path, os.W_OK | os.X_OK):
            raise ValueError(
                f"parallel.{key}=nvme, but parallel.nvme_path={cfg.nvme_path} is no folder to write in: name "
                "one on a local disk"
            )


@contextlib.contextmanager
def swap_folder(cfg: ParallelConfig, rank: int) -> Iterator[str]:
    """A folder of this rank for state offloaded to nvme, removed afterwards; "" where nothing is offloaded.

    ValueError if the operator that reads and writes there cannot be compiled. That takes minutes, once.
    """
    if "nvme" not in (cfg.offload_optimizer, cfg.offload_parameters):
        yield ""
        return
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ValueError(
            "offloading to nvme needs libaio and a C++ compiler (Debian: apt install libaio-dev g++): "
            "install them, or offload to cpu"
        )
    _check_lock()
    with tempfile.TemporaryDirectory(
        prefix=f"germinal-rank-{rank}-", dir=cfg.nvme_path, ignore_cleanup_errors=True
    ) as folder:
        yield folder


def _check_lock() -> None:
    """ValueError where a killed compile left torch's lock: every start would wait for it for ever.

    Ranks that compile together, or wait for one that does, find no lock or a young one.
    """
    build_folder = borrow("torch", "torch.utils.cpp_extension", "_get_build_directory")
    lock = Path(build_folder("async_io", verbose=False)) / "lock"
    with contextlib.suppress(FileNotFoundError):
        minutes = (time.time() - lock.stat().st_mtime) / 60
        if minutes > _LONGEST_COMPILE_MINUTES:
            raise ValueError(
                f"offloading to nvme: {lock} has said for {minutes:.0f} minutes that another process "
                "compiles async_io, which takes two: delete it if none does"
            )


def deepspeed_config(
    cfg: ParallelConfig,
    layout: Layout,
    *,
    swap: str,
    precision: str,
    micro_batch: int,
    micro_batches: int,
    elements: int,
    largest: int,
) -> dict[str, Any]:
    """DeepSpeed's config.

    swap: the folder for state that is offloaded to nvme, or "".
    micro_batch: rows of a micro-batch.
    micro_batches: of one step on one data rank.
    elements: number of the model's parameters.
    largest: elements of the model's largest tensor.
    """
    bucket = max(largest, min(elements, _REDUCE_BUCKET_ELEMENTS))
    bucket += bucket % 2  # DeepSpeed refuses an odd size
    zero: dict[str, Any] = {
        "stage": layout.zero,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "offload_optimizer": {"device": cfg.offload_optimizer, "nvme_path": swap or None},
        "offload_param": {"device": cfg.offload_parameters, "nvme_path": swap or None},
    }
    if cfg.offload_parameters == "nvme":  # each buffer must hold the largest tensor
        zero["offload_param"]["buffer_size"] = max(largest, _SWAP_BUFFER_ELEMENTS)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "train_batch_size": micro_batch * micro_batches * layout.world,
        # Without the key DeepSpeed clips at 1.0. `FlatAdamW` clips, with the true count (law 3).
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        # Our optimiser, also where its state is offloaded: see `optim`.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # `Normalisation` scales the loss, as on the torch engine; DeepSpeed's own scale stays 1.
        "fp16": {"enabled": precision == "fp16", "loss_scale": 1.0},
        "bf16": {"enabled": precision == "bf16"},
        "communication_data_type": "fp32",
    }
    if layout.zero:  # without ZeRO, DeepSpeed accumulates in the parameters' own type and offers no other
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
