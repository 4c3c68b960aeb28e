"""The gradient's norm is a property of the gradient, not of how many rows of it a rank holds."""

import math

import pytest
import torch

from parallel.gradients.scaling import squares


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_norm_of_a_large_uneven_gradient_is_exact_however_it_is_cut(shards: int) -> None:
    draw = torch.Generator().manual_seed(0)
    grad = torch.randn(32_000, 128, generator=draw)  # a vocabulary: few rows seen often, many hardly
    grad[40:] *= 1e-3
    exact = float(torch.linalg.vector_norm(grad.double()))
    found = math.sqrt(sum(float(squares([piece])) for piece in grad.chunk(shards)))
    assert found == pytest.approx(exact, rel=1e-7)  # one float32 sum: 1e-4 off, by another amount a cut


def test_every_gradient_counts_and_what_is_not_finite_stays_so() -> None:
    ones = [torch.ones(3), torch.ones(2, 2), torch.ones(0), torch.ones(0, 4), torch.ones(2, 1, 3)]
    assert float(squares(ones)) == pytest.approx(13.0, rel=1e-6)
    assert not math.isfinite(float(squares([*ones, torch.tensor([1.0, math.inf])])))
    assert not math.isfinite(float(squares([*ones, torch.tensor([[math.nan, 1.0]])])))
