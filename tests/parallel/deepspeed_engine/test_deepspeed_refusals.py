"""What the DeepSpeed engine does not do is said in one line, with the remedy."""

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.cpp_extension import _get_build_directory

from parallel.config import ParallelConfig
from parallel.deepspeed_engine import settings
from parallel.deepspeed_engine.optim import FlatAdamW, from_factory
from trainer.config.sections import OptimConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.optim.build import build_optimizer


def config(**values: Any) -> ParallelConfig:
    return ParallelConfig(engine="deepspeed", **values)


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_parameters"])
def test_a_folder_that_is_not_there_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"parallel\.nvme_path=/no/such is no folder") as caught:
        settings.check(config(**{key: "nvme", "zero": 3, "nvme_path": "/no/such"}))
    assert "\n" not in str(caught.value)


def test_missing_install_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "transformers" else found(name, *rest),
    )
    with pytest.raises(ValueError, match=r"needs transformers: pip install 'germinal\[deepspeed\]'"):
        settings.check(config())


def groups_of(name: str) -> FlatAdamW:
    matrix, norm = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    return from_factory(
        lambda parameters: build_optimizer(
            parameters,
            OptimConfig(name=name, weight_decay=0.3),
            DecoderConfig().plan(),
        ),
        {"layers.0.w": (matrix, (4, 4)), "norm": (norm, (4,))},
    )


def test_groups_are_the_factorys() -> None:
    decays = {
        tuple(group["params"][0].shape): group["weight_decay"] for group in groups_of("adamw").param_groups
    }
    assert decays == {(4, 4): 0.3, (4,): 0.0}


def test_optimiser_does_nothing_until_it_is_told_the_divisor() -> None:
    """DeepSpeed's wrappers take a step with zero gradients at the start, which would decay the weights."""
    optimizer = groups_of("adamw")
    for group in optimizer.param_groups:
        group["lr"] = 0.1
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    matrix = optimizer.param_groups[0]["params"][0]
    assert matrix.eq(1).all() and not optimizer.state
    optimizer.divisor = lambda: torch.tensor(2.0)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((4, 4), 1 - 0.1 * 0.3))


def test_a_lock_that_a_killed_compile_left_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch would wait for it without a word and without an end."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    settings._check_lock()
    lock = Path(_get_build_directory("async_io", verbose=False)) / "lock"
    lock.touch()
    settings._check_lock()  # somebody may be compiling
    os.utime(lock, (time.time() - 3600, time.time() - 3600))
    with pytest.raises(ValueError, match=r"/lock has said for 60 minutes") as raised:
        settings._check_lock()
    assert "\n" not in str(raised.value)
