"""Starting DeepSpeed through Accelerate (`DeepSpeedPlugin`), without leaving a trace of it in the process.

Both find out who they are from environment variables and keep it in global state. Here `Runtime` tells them:
DeepSpeed for as long as its engine lives, Accelerate while it builds that. Afterwards the environment and
Accelerate's state are as before, so that its trackers, say, do not see a half-true world.
"""

import contextlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from parallel.config import ParallelConfig
from parallel.layout.layout import Layout
from parallel.relied_on import borrow, insist
from parallel.world.environment import environment
from parallel.world.runtime import Runtime

_NEEDED = ("deepspeed", "accelerate", "transformers")
_REDUCE_BUCKET_ELEMENTS = 200_000_000  # DeepSpeed allocates one such buffer, or two where it overlaps
_LONGEST_COMPILE_MINUTES = 15
_SWAP_BUFFER_ELEMENTS = 100_000_000  # its own default


def check(cfg: ParallelConfig) -> None:
    """ValueError, one line, for what is not installed, or not there to offload to."""
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
    """A folder of this rank's own for what is offloaded to nvme, removed in the end; "" where nothing is.

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
    """ValueError where a killed compile left torch's lock, for which every start would wait for ever.

    Ranks that compile and wait together find no lock, or a young one.
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
    """What DeepSpeed is told. `elements`, `largest`: of the model, and of its largest tensor."""
    bucket = max(largest, min(elements, _REDUCE_BUCKET_ELEMENTS))
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
        # Said aloud, or it clips at 1.0. Clipping is the optimiser's, which knows the count (law 3).
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        # The optimiser is ours also where its state is offloaded: see `deepspeed_optim`.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # The scale is ours, as the torch engine's: DeepSpeed sees a static one that changes between steps.
        "fp16": {"enabled": precision == "fp16", "loss_scale": 1.0},
        "bf16": {"enabled": precision == "bf16"},
        "communication_data_type": "fp32",
    }
    if layout.zero:  # without ZeRO, DeepSpeed accumulates in the parameters' own type and offers no other
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def build_model(factory: Any, config: dict[str, Any], device: torch.device) -> nn.Module:
    """The model in memory, its values undefined: under ZeRO-3 each tensor is cut as soon as it exists."""
    if config["zero_optimization"]["stage"] == 3:
        import deepspeed

        with deepspeed.zero.Init(config_dict_or_path=config), torch.device(device):
            return factory()
    with torch.device(device):
        return factory()


@contextlib.contextmanager
def world(runtime: Runtime) -> Iterator[None]:
    """While this lasts, DeepSpeed knows who it is: it asks the environment, and not only at the start.

    Collective. A single process gets a process group of one, which DeepSpeed cannot do without.
    """
    if not dist.is_initialized():
        assert runtime.world == 1, "several ranks need parallel.world.runtime.start() first"
        backend = "cpu:gloo,cuda:nccl" if runtime.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    told = {
        "RANK": str(runtime.rank),
        "WORLD_SIZE": str(runtime.world),
        "LOCAL_RANK": str(runtime.local_rank),
        "DS_ACCELERATOR": runtime.device.type,
    }
    # Torch renamed two collectives that DeepSpeed 0.19 calls under their old names, on every rank.
    warnings.filterwarnings("ignore", r".*_tensor` is deprecated", FutureWarning)
    # Operators are compiled by ninja, which lies beside this Python.
    with environment(told, programs=Path(sys.executable).parent):
        import deepspeed
        from accelerate.state import AcceleratorState, GradientState, PartialState
        from deepspeed.utils import groups

        insist("deepspeed", deepspeed.ops, "__compatible_ops__")
        insist("deepspeed", groups, "_release_process_group_references")
        for state in (PartialState, AcceleratorState, GradientState):
            insist("accelerate", state, "_shared_state")
        for handler in logging.getLogger("DeepSpeed").handlers:  # standard output is not its to write on
            handler.setStream(sys.stderr)  # type: ignore[attr-defined]
        accelerator = deepspeed.accelerator.get_accelerator()
        with quiet():
            # Its all-reduce through shared memory is compiled at the first start, which takes a compiler and
            # half a minute, for what gloo does.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        with _fp16_on_every_cpu(accelerator) if runtime.device.type == "cpu" else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def _fp16_on_every_cpu(accelerator: Any) -> Iterator[None]:
    """While this lasts, DeepSpeed takes fp16 on a CPU for a type that it can compute in.

    It asks oneDNN, which has fp16 where the CPU has (AVX512-FP16, AMX-FP16), and refuses it elsewhere. Torch
    computes it everywhere, if slowly; so do bf16, which DeepSpeed does not ask about, and the torch engine.
    """
    accelerator.is_fp16_supported = lambda: True
    try:
        yield
    finally:
        del accelerator.is_fp16_supported


def prepare(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """The DeepSpeed engine that Accelerate makes of the three. Inside `world` and `quiet` only."""
    from accelerate import Accelerator, DeepSpeedPlugin
    from deepspeed import DeepSpeedEngine

    precision = "fp16" if config["fp16"]["enabled"] else "bf16" if config["bf16"]["enabled"] else "no"
    with _fresh_accelerate():
        plugin = DeepSpeedPlugin(hf_ds_config=config, gradient_clipping=0.0)
        accelerator = Accelerator(
            deepspeed_plugin=plugin,
            mixed_precision=precision,
            gradient_accumulation_steps=config["gradient_accumulation_steps"],
        )
        engine, _ = accelerator.prepare(model, optimizer)
    # Accelerate returns plain DDP, without a word, where it does not recognise the plugin.
    assert type(engine) is DeepSpeedEngine, f"Accelerate made a {type(engine).__name__} of the model"
    assert engine.gradient_clipping() == 0.0, "DeepSpeed clips by itself"
    return engine


def release() -> None:
    """Forget the process groups that DeepSpeed keeps for its next engine: they may be gone by then."""
    from deepspeed.utils import groups

    groups._release_process_group_references()


@contextlib.contextmanager
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate as in a new process; afterwards as it was."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [cls._shared_state for cls in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        # Without the first, or with `accelerate launch --cpu`'s second, the plugin is ignored, and plain DDP
        # comes back.
        with environment({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "false"}):
            yield
    finally:
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Only errors while starting: what is warned of there is what this module chooses on purpose.

    Afterwards warnings. DeepSpeed also prints, sizes of memory for instance: that is dropped.
    """
    loggers = [logging.getLogger(name) for name in ("DeepSpeed", "accelerate")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(max(level, logging.WARNING))
