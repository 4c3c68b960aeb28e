"""Tensor parallelism for reading token by token: hidden states are whole on every rank.

A single token has no sequence to cut, so the sums after attention and feed-forward are all-reduced (Shoeybi
et al. 2019, arXiv:1909.08053), where training scatters them along the sequence (see `tensor`). Weights are
cut as in training. Forward alone.

Each logit is computed by one rank and gathered by all. So all ranks have the same logits to the last bit,
whatever the rounding of the sums before them, and with one seed every rank draws the same token.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from common.model_plan import ModelPlan
from parallel.layout.mesh import Axis
from parallel.messages import collectives
from parallel.transforms.tensor import STYLES, Styles, Target, cut_dim, cut_rows, tensor_parallel, unchanged

_LOGITS = 2  # the dim of [batch, seq, vocab]


class _Embedding(nn.Module):
    """This rank's rows of an embedding table: tokens [batch, seq] → [batch, seq, hidden]."""

    def __init__(self, weight: nn.Parameter, axis: Axis) -> None:
        super().__init__()
        self.weight, self.axis = weight, axis

    def forward(self, tokens: Tensor) -> Tensor:
        local = tokens - self.axis.rank * self.weight.shape[0]
        mine = (local >= 0) & (local < self.weight.shape[0])
        rows = F.embedding(torch.where(mine, local, 0), self.weight) * mine.unsqueeze(-1)
        dist.all_reduce(rows, group=self.axis.group)
        return rows


def _embedding(at: Target) -> dict[str, int]:
    at.replace_by(_Embedding(cut_rows(at), at.axis))
    return {"weight": 0}


class _RowLinear(nn.Module):
    """weight [out, in/tp], bias [out] or none; [batch, seq, in/tp] → [batch, seq, out], summed over ranks."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, axis: Axis) -> None:
        super().__init__()
        self.weight, self.bias, self.axis = weight, bias, axis

    def forward(self, x: Tensor) -> Tensor:
        product = F.linear(x, self.weight)
        dist.all_reduce(product, group=self.axis.group)
        return product if self.bias is None else product + self.bias


def _row(at: Target) -> dict[str, int]:
    at.replace_by(_RowLinear(cut_dim(at, "weight", 1), at.module._parameters.get("bias"), at.axis))
    return {"weight": 1}


def _head(at: Target) -> dict[str, int]:
    cut_rows(at)
    dims = {"weight": 0}
    if at.module._parameters.get("bias") is not None:
        cut_dim(at, "bias", 0)
        dims["bias"] = 0
    group = at.group
    at.module.register_forward_hook(lambda _, args, output: collectives.gather_whole(output, _LOGITS, group))
    return dims


_DECODING: Styles = {
    **dict.fromkeys(("gather", "split", "alike", "sequence", "attention_core"), unchanged),
    "column": STYLES["column"],
    "row": _row,
    "vocab_embedding": _embedding,
    "vocab_head": _head,
}


def decoding_parallel(model: nn.Module, plan: ModelPlan, axis: Axis) -> dict[str, int]:
    """Cut `model`, still on the meta device, to this rank's part. Return parameter name → sharded dim.

    The model then gives whole logits [batch, seq, vocab] on every rank.
    """
    return tensor_parallel(model, plan, axis, styles=_DECODING)
