"""Styles of the plan, each on two ranks against one process; places under context parallelism."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.model_plan import Init, ModelPlan
from common.objective import ModelInputs
from parallel.layout.mesh import Axis
from parallel.transforms.context import slice_inputs
from parallel.transforms.tensor import tensor_parallel
from ranks import RankContext, RankPools
from trainer.models.layers.head import LMHead


class Heads(nn.Module):
    """A head of the first token beside a vocabulary's head with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
        self.head = LMHead(8, 10, bias=True)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return self.pooled(x)[:, 0].square().sum(dim=1) + self.head(x, targets)


def plan(pooled: str) -> ModelPlan:
    return ModelPlan(
        towers=(),
        tensor=(
            ("pooled", pooled),
            ("pooled.0", "sequence"),
            ("pooled.2", "sequence"),
            ("head", "vocab_head"),
        ),
        tied=(),
        hidden_shape=lambda shape: shape,
        init=lambda name, shape: Init("ones"),
        no_decay=lambda name, shape: False,
    )


def values() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in Heads().named_parameters()}
    return {name: torch.randn(shape, generator=draw).double() for name, shape in shapes.items()}


def gradients(context: RankContext, pooled: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses, and whole gradients: of each weight and of the input `x`."""
    draw = torch.Generator().manual_seed(1)
    whole = torch.randn(2, 6, 8, generator=draw).double()
    targets = torch.randint(10, (2, 6), generator=draw)
    with torch.device("meta"):
        model = Heads()
    rank, ranks = context.rank, context.world
    group = dist.group.WORLD if ranks > 1 else None
    cut = tensor_parallel(model, plan(pooled), Axis(rank, ranks, group))
    model.to_empty(device="cpu").double()
    for name, parameter in model.named_parameters():
        value = values()[name]
        parameter.data = value.chunk(ranks, cut[name])[rank].clone() if name in cut else value
    x = whole.chunk(ranks, dim=1)[rank].clone().requires_grad_()
    losses = model(x, targets)
    losses.sum().backward()
    found = {}
    for name, tensor in {**dict(model.named_parameters()), "x": x}.items():
        gradient = tensor.grad
        assert gradient is not None
        dim = 1 if name == "x" else cut.get(name)
        if ranks > 1 and dim is None:
            dist.all_reduce(gradient)
        elif ranks > 1:
            parts = [torch.empty_like(gradient) for _ in range(ranks)]
            dist.all_gather(parts, gradient.contiguous())
            gradient = torch.cat(parts, dim)
        found[name] = gradient
    return losses.detach(), found


@pytest.mark.parametrize("pooled", ["alike", "gather"])
def test_a_head_that_every_rank_computes_alike(ranks: RankPools, pooled: str) -> None:
    """The sums over tp are the gradients of one process; with "gather" they would be twice as large."""
    losses, expected = gradients(RankContext(0, 1), pooled)
    for found_losses, found in ranks(2).run(gradients, pooled):
        assert torch.allclose(found_losses, losses, rtol=1e-12)
        wrong = [name for name, grad in found.items() if not torch.allclose(grad, expected[name], rtol=1e-9)]
        assert wrong == ([] if pooled == "alike" else [n for n in found if not n.startswith("head")])


def test_each_rank_counts_places_from_the_start_of_its_part() -> None:
    places = torch.tensor([[0, 5, 6, 11, -1], [7, -1, 8, 9, -1]])
    inputs = ModelInputs(
        torch.arange(24).view(2, 12),
        {"places": places, "others": places},
        places=frozenset({"places"}),
    )
    found: list[Any] = [slice_inputs(inputs, Axis(rank, 2, None)) for rank in range(2)]
    assert found[0].kwargs["places"].tolist() == [[0, 5, -1, -1, -1], [-1, -1, -1, -1, -1]]
    assert found[1].kwargs["places"].tolist() == [[-1, -1, 0, 5, -1], [1, -1, 2, 3, -1]]
    assert all(one.places == {"places"} for one in found)
    assert all(torch.equal(one.kwargs["others"], places) for one in found)
    whole = inputs.x[0, places[0, :4]]
    parts = [one.x[0][one.kwargs["places"][0]][one.kwargs["places"][0] >= 0] for one in found]
    assert torch.equal(torch.cat(parts), whole)
