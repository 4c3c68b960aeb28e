"""Starting DeepSpeed through Accelerate (`DeepSpeedPlugin`), without a lasting change to the process.

Both read rank and world from environment variables and keep them in global state. Here the variables are set
from `Runtime`: for DeepSpeed as long as its engine exists, for Accelerate while it builds the engine.
Afterwards the environment and Accelerate's state are as before, so that Accelerate's trackers, for instance,
do not see them.
"""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from parallel.relied_on import insist
from parallel.world.environment import environment
from parallel.world.runtime import Runtime


def build_model(factory: Any, config: dict[str, Any], device: torch.device) -> nn.Module:
    """The model in memory, its values undefined. Under ZeRO-3 each tensor is cut as soon as it exists."""
    if config["zero_optimization"]["stage"] == 3:
        import deepspeed

        with deepspeed.zero.Init(config_dict_or_path=config), torch.device(device):
            return factory()
    with torch.device(device):
        return factory()


@contextlib.contextmanager
def world(runtime: Runtime) -> Iterator[None]:
    """Set rank and world for DeepSpeed, which reads the environment after its start too. Collective.

    A single process gets a process group of one rank: DeepSpeed needs one.
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
    # DeepSpeed compiles operators with ninja, which is installed beside this Python.
    with environment(told, programs=Path(sys.executable).parent):
        import deepspeed
        from accelerate.state import AcceleratorState, GradientState, PartialState
        from deepspeed.utils import groups

        insist("deepspeed", deepspeed.ops, "__compatible_ops__")
        insist("deepspeed", groups, "_release_process_group_references")
        for state in (PartialState, AcceleratorState, GradientState):
            insist("accelerate", state, "_shared_state")
        for handler in logging.getLogger("DeepSpeed").handlers:  # standard output is for the command's result
            handler.setStream(sys.stderr)  # type: ignore[attr-defined]
        accelerator = deepspeed.accelerator.get_accelerator()
        with quiet():
            # DeepSpeed would compile an all-reduce through shared memory at the first start. That takes a
            # compiler and half a minute, and gloo has one.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        with _fp16_on_every_cpu(accelerator) if runtime.device.type == "cpu" else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def _fp16_on_every_cpu(accelerator: Any) -> Iterator[None]:
    """Have DeepSpeed accept fp16 on any CPU.

    DeepSpeed accepts what oneDNN has: fp16 where the CPU has it (AVX512-FP16, AMX-FP16). Torch computes fp16
    on every CPU, if slowly, and the torch engine accepts it. DeepSpeed does not check bf16.
    """
    accelerator.is_fp16_supported = lambda: True
    try:
        yield
    finally:
        del accelerator.is_fp16_supported


def prepare(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """The DeepSpeed engine that Accelerate makes of the arguments. Call it inside `world` and `quiet`."""
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
    # Accelerate silently returns plain DDP where it does not recognise the plugin.
    assert type(engine) is DeepSpeedEngine, f"Accelerate made a {type(engine).__name__} of the model"
    assert engine.gradient_clipping() == 0.0, "DeepSpeed clips by itself"
    return engine


def release() -> None:
    """Drop the process groups that DeepSpeed keeps for its next engine: they may be destroyed by then."""
    from deepspeed.utils import groups

    groups._release_process_group_references()


@contextlib.contextmanager
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate's global state as in a new process; restored afterwards."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [cls._shared_state for cls in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        # Without the first variable, or with the second true as under `accelerate launch --cpu`, Accelerate
        # ignores the plugin and returns plain DDP.
        with environment({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "false"}):
            yield
    finally:
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Log only errors meanwhile, and only warnings and errors afterwards; drop what DeepSpeed prints.

    What DeepSpeed and Accelerate warn of while they start is what this file chooses on purpose. DeepSpeed
    prints sizes of memory, for instance.
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
