"""Contrastive losses against a dozen lines each, over all rows or a slab of them, with rows left out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.objective import ComparesRows
from trainer.models.towers.image_text_config import ImageTextConfig
from trainer.models.towers.text_pair_config import TextPairConfig
from trainer.models.vision.config import VisionConfig
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.contrastive import Clip, Compares, Contrastive, Siglip
from trainer.objectives.contrastive_config import ClipConfig, ContrastiveConfig, SiglipConfig
from trainer.objectives.pairs import text_weights

ROWS, WIDTH = 9, 6
COUNTED = torch.tensor([True, True, False, True, True, True, False, True, True])


def info_nce(a: Tensor, b: Tensor, learnt: Tensor) -> Tensor:
    scores, own = a @ b.T / 0.2, torch.arange(len(a))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def nt_xent(a: Tensor, b: Tensor, learnt: Tensor) -> Tensor:
    z, n = torch.cat([a, b]), len(a)
    scores = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
    return F.cross_entropy(scores, (torch.arange(2 * n) + n) % (2 * n))


def clip(a: Tensor, b: Tensor, learnt: Tensor) -> Tensor:
    scores, own = learnt[0].exp() * a @ b.T, torch.arange(len(a))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def siglip(a: Tensor, b: Tensor, learnt: Tensor) -> Tensor:
    scores = learnt[0].exp() * a @ b.T + learnt[1]
    return -F.logsigmoid(scores * (2 * torch.eye(len(a)) - 1)).sum() / len(a)


def context(learnt: str) -> ObjectiveContext:
    model = TextPairConfig(learnt=learnt)  # type: ignore[arg-type]
    return ObjectiveContext(0, 8, 10, 0, bytes, model)


CASES: list[Any] = [
    (Contrastive(ContrastiveConfig(temperature=0.2), context("none")), info_nce, []),
    (Contrastive(ContrastiveConfig(temperature=0.2, negatives="both_sides"), context("none")), nt_xent, []),
    (Clip(ClipConfig(), context("scale")), clip, [1.3]),
    (Siglip(SiglipConfig(), context("scale_bias")), siglip, [1.3, -2.0]),
]


@pytest.mark.parametrize(
    ("objective", "reference", "numbers"), CASES, ids=["info_nce", "nt_xent", "clip", "siglip"]
)
def test_loss_and_gradients_are_the_formulas_whatever_the_slab(
    objective: Compares, reference: Any, numbers: list[float]
) -> None:
    assert isinstance(objective, ComparesRows)
    z = torch.randn(ROWS, 2 * WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    learnt = torch.tensor(numbers, dtype=torch.float64)
    z.requires_grad_()
    learnt.requires_grad_()
    a, b = (F.normalize(side, dim=1) for side in z[COUNTED].split(WIDTH, dim=1))
    expected = reference(a, b, learnt)
    wanted = torch.autograd.grad(expected, [z, learnt] if numbers else [z])
    every = torch.cat([z, learnt.expand(ROWS, -1)], dim=1)
    for slab in (1, 2, ROWS):
        losses, counts = (
            torch.cat(parts)
            for parts in zip(
                *(
                    objective.loss_of_rows(every[start : start + slab], every, COUNTED, start)
                    for start in range(0, ROWS, slab)
                )
            )
        )
        assert not losses[~COUNTED].any() and not counts[~COUNTED].any()
        loss = losses.sum() / counts.sum()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        found = torch.autograd.grad(loss, [z, learnt] if numbers else [z], retain_graph=True)
        for got, want in zip(found, wanted, strict=True):
            assert torch.allclose(got, want, rtol=1e-8, atol=1e-10)


def test_nothing_is_counted_and_nothing_is_nan() -> None:
    for objective, _, numbers in CASES:
        every = torch.randn(3, 8 + len(numbers), requires_grad=True)
        losses, counts = objective.loss_of_rows(every, every, torch.zeros(3, dtype=torch.bool), 0)
        losses.sum().backward()
        assert losses.sum() == counts.sum() == 0 and every.grad is not None and not every.grad.any()


def test_recall_counts_equally_near_sides_as_nearer() -> None:
    objective = CASES[0][0]
    a = torch.eye(4)
    b = torch.eye(4)[[0, 2, 1, 3]]  # rows 1 and 2 have each other's side
    counted = torch.ones(4, dtype=torch.bool)
    both = torch.cat([a, b], dim=1)
    figures = objective.measure_rows(both, both, counted, 0)
    assert objective.measures == ("recall@1", "recall@5", "recall@10")
    assert figures.tolist() == [[4.0, 8.0], [8.0, 8.0], [8.0, 8.0]]
    halves = [objective.measure_rows(both[i : i + 2], both, counted, i) for i in (0, 2)]
    assert torch.equal(halves[0] + halves[1], figures)
    alike = torch.ones(12, 2 * WIDTH)
    assert not objective.measure_rows(alike, alike, torch.ones(12, dtype=torch.bool), 0)[:, 0].any()
    nothing = torch.full((12, 2 * WIDTH), math.nan)
    assert not objective.measure_rows(nothing, nothing, torch.ones(12, dtype=torch.bool), 0)[:, 0].any()
    without = objective.measure_rows(both, both, torch.tensor([True, True, False, True]), 0)
    assert without[0].tolist() == [4.0, 6.0], "to row 1 all sides are equally far"


def test_a_row_with_an_empty_side_takes_no_part() -> None:
    """A text without ids is as long as its separator."""
    texts = {"length": torch.tensor([[2, 5], [1, 5], [3, 1], [0, 0], [2, 2]])}
    of_pairs = Contrastive(ContrastiveConfig(), context("none"))
    assert of_pairs.counted(texts, (0, 1, 2, 3, -1)).tolist() == [True, False, False, False, False]
    captions = {"length": torch.tensor([2, 1, 0])}
    model = ImageTextConfig()
    of_pictures = Clip(ClipConfig(), ObjectiveContext(0, 8, 10, 0, bytes, model))
    assert of_pictures.counted(captions, (0, 1, 2)).tolist() == [True, False, False]
    views = Contrastive(ContrastiveConfig(), ObjectiveContext(0, 8, 10, 0, bytes, VisionConfig()))
    assert views.counted(captions, (0, 1, 2)).tolist() == [True, True, False], "a picture needs no caption"


def test_a_scale_at_its_bound_moves_only_back() -> None:
    objective = Clip(ClipConfig(largest_scale=5.0), context("scale"))
    rows = torch.tensor([[0.0, 1.0, math.log(5.0) + 0.1]] * 2)
    up, down = torch.tensor([[1.0, 1.0, -2.0]] * 2), torch.tensor([[1.0, 1.0, 2.0]] * 2)
    assert objective.bounded(rows, up.clone()).tolist() == [[1.0, 1.0, 0.0]] * 2
    assert torch.equal(objective.bounded(rows, down.clone()), down)
    assert torch.equal(objective.bounded(rows - 0.2, up.clone()), up)
    at = torch.randn(4, 8)
    counted = torch.ones(4, dtype=torch.bool)
    bound, above = (
        objective.loss_of_rows(z, z, counted, 0)[0]
        for z in (torch.cat([at, torch.full((4, 1), value)], dim=1) for value in (math.log(5.0), 9.0))
    )
    assert torch.allclose(bound, above)


def test_weights_of_a_text() -> None:
    length = torch.tensor([[2, 4], [0, 1]])
    mean = text_weights(length, 8, "mean")
    assert mean[0].tolist() == [[0.5, 0.5, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25]]
    assert mean[1].tolist() == [[0.0] * 8, [0, 0, 0, 0, 1.0, 0, 0, 0]]
    assert text_weights(length, 8, "last").argmax(dim=2).tolist() == [[1, 7], [0, 4]]
    assert text_weights(length, 8, "first").argmax(dim=2).tolist() == [[0, 4], [0, 4]]
    assert not text_weights(length, 8, "first")[1, 0].any()
