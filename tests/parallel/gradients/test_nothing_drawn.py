"""A model that draws from the process's generator is told apart in its first step, on every layout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.gradients.nothing_drawn import NothingDrawn
from runs import Alone, Case, curve


def test_a_generator_that_gave_numbers_is_noticed() -> None:
    with NothingDrawn(torch.device("cpu")).watched():
        torch.rand(2, generator=torch.Generator().manual_seed(1))
    draws: list[Callable[[], Tensor]] = [
        lambda: torch.rand(2),
        lambda: nn.RReLU()(torch.zeros(2)),
        lambda: F.dropout(torch.ones(2)),
    ]
    for draw in draws:
        with (
            pytest.raises(ValueError, match=r"^the model draws from a random generator of the process"),
            NothingDrawn(torch.device("cpu")).watched(),
        ):
            draw()


def test_later_steps_are_not_watched() -> None:
    drawn = NothingDrawn(torch.device("cpu"))
    for draws in (False, True):
        with drawn.watched():
            torch.rand(2 * draws)


def drawing_curve(context: Any, case: Case) -> str:
    """The error of a run whose feed-forward layers drop features."""
    from trainer.models.layers.feed_forward import FeedForward

    forward = FeedForward.forward

    def dropping(self: FeedForward, x: Tensor) -> Tensor:
        return F.dropout(forward(self, x), 0.1, self.training)

    FeedForward.forward = dropping  # type: ignore[method-assign]
    try:
        curve(context, case)
    except ValueError as error:
        return str(error)
    finally:
        FeedForward.forward = forward  # type: ignore[method-assign]
    return ""


@pytest.mark.parametrize("parallel", [{"recompute": "full"}, {"engine": "deepspeed", "zero": 1}], ids=str)
def test_engines_refuse_to_go_on(parallel: dict[str, Any], ranks: Any) -> None:
    case = Case(parallel=parallel, model={"layers": 2}, steps=2)
    found = ranks(2).run(drawing_curve, case)
    assert all("leave out what draws" in error for error in found)
    assert "leave out what draws" in drawing_curve(Alone(), Case(model={"layers": 2}, steps=1))
