"""What mixed precision casts, and what it must leave alone."""

import pytest
import torch
from torch import Tensor

from runs import Alone, Case, curve
from trainer.models.layers import attention


@pytest.mark.parametrize("documents", [False, True])
def test_rotary_tables_stay_float32(monkeypatch: pytest.MonkeyPatch, documents: bool) -> None:
    """FSDP casts every float tensor it finds in a block's arguments, inside dataclasses too. In bfloat16 a
    position beyond 256 would be told from its neighbour by rounding.
    """
    seen: set[tuple[torch.dtype, torch.dtype]] = set()
    true = attention.rotate

    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        seen.add((x.dtype, cos.dtype))
        return true(x, cos, sin)

    monkeypatch.setattr(attention, "rotate", rotate)
    curve(Alone(), Case(precision="bf16", micro_batch=8, steps=1, documents=documents))
    assert seen == {(torch.bfloat16, torch.float32)}
