"""Values that are not finite, named by module and direction; operators without a deterministic algorithm."""

import math
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from debugged import looked_into, opened
from torch import Tensor

from trainer.models.layers.feed_forward import FeedForward


def test_a_nan_in_a_weight_of_layer_3_is_named(trained: Path) -> None:
    with opened(trained) as run:
        for chunk in run.engine.chunks():
            if chunk.name == "model.layers.3.attention.wv.weight":
                chunk.tensor[5, 7] = math.nan
        with pytest.raises(RuntimeError) as caught:
            looked_into(run)
    assert str(caught.value) == (
        "forward: the output of layers.3.attention.wv is not finite (64 of 1,024 values, the first at "
        "[0, 0, 5]): its weight is not (1 of 512 values, the first at [5, 7]): step 5, micro-batch 0 "
        "(sequences 32 to 33)"
    )


class Spoilt(torch.autograd.Function):
    """Nothing in forward; in backward the gradient × FACTOR."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.abs().add(1.0) * Spoilt.factor


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (
            math.inf,
            "backward: the gradient at the output of layers.3.mlp.w2 is not finite (2,048 of 2,048 values, "
            "the first at [0, 0, 0]); the last that was finite: at the output of layers.3.mlp: step 5, ",
        ),
        (math.nan, "Function 'SpoiltBackward' returned nan values in its 0th output."),
    ],
)
def test_a_gradient_that_a_module_spoils_is_named(
    trained: Path, monkeypatch: pytest.MonkeyPatch, factor: float, says: str
) -> None:
    honest = FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: Spoilt.apply(honest(self, x)))
    monkeypatch.setattr(Spoilt, "factor", factor)
    with (
        opened(trained) as run,
        pytest.raises(RuntimeError) as caught,
        pytest.warns() if factor != factor else nullcontext(),
    ):
        looked_into(run)
    assert str(caught.value).startswith(says)
    if factor != factor:
        assert "at the output of layers.3.mlp" in caught.value.__notes__[0]


def test_an_operator_without_a_deterministic_algorithm_is_refused_with_the_remedy(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = FeedForward.forward

    def forward(self: FeedForward, x: Tensor) -> Tensor:
        x.detach().clone().put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return honest(self, x)

    monkeypatch.setattr(FeedForward, "forward", forward)
    with (
        opened(trained) as run,
        pytest.raises(RuntimeError, match="put_ does not have a deterministic") as caught,
    ):
        looked_into(run)
    assert caught.value.__notes__[0].startswith("raised in the module layers.0.mlp")
    assert "--any-algorithm" in caught.value.__notes__[1]
    assert not torch.are_deterministic_algorithms_enabled()
    with opened(trained) as run:
        assert looked_into(run, deterministic=False)[0]


def test_chance_in_a_forward_pass_is_found(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(trained) as run:
        well, lines = looked_into(run)
    assert well and "two forward passes over it: the same to the last bit" in lines
    honest = FeedForward.forward
    # Not by torch's generators: a model that draws from these is refused in its first step.
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: honest(self, x) + 1e-3 * random.random())
    with opened(trained) as run:
        well, lines = looked_into(run)
    assert not well and any(line.startswith("NOT DETERMINISTIC: two forward passes") for line in lines)
