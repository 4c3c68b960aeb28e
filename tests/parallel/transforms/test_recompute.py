"""Which blocks recompute, what they keep, and that gradients and names stay as they were."""

from typing import Any

import pytest
import torch
from torch import nn

from parallel.transforms.recompute import apply_recompute, parse
from trainer.config import reading


def test_which_blocks() -> None:
    assert [parse("every:2")(n) for n in range(4)] == ["full", "none", "full", "none"]
    assert parse("selective")(3) == "selective"


@pytest.mark.parametrize("wrong", ["half", "every:0", "every:x", "every", "every:-1"])
def test_unknown_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"parallel\.recompute="):
        reading.load("configs/debug.yaml", [f"parallel.recompute={wrong}"])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


def run(recompute: str) -> tuple[int, list[torch.Tensor], list[str]]:
    """(elements kept for backward beyond parameters, gradients, names)."""
    torch.manual_seed(0)
    blocks = nn.ModuleDict({str(n): Block() for n in range(4)})
    apply_recompute(blocks, recompute)
    own = {p.untyped_storage().data_ptr() for p in blocks.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    hidden: Any = torch.randn(32, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for block in blocks.values():
            hidden = block(hidden)
    elements = sum(kept.values())
    hidden.square().sum().backward()
    grads = [p.grad.clone() for p in blocks.parameters() if p.grad is not None]
    return elements, grads, [name for name, _ in blocks.named_parameters()]


def test_memory_falls_and_nothing_else_changes() -> None:
    everything, grads, names = run("none")
    for recompute in ("full", "selective", "every:2"):
        kept, again, same_names = run(recompute)
        assert kept < everything
        assert names == same_names
        assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    assert run("full")[0] < run("every:2")[0]
