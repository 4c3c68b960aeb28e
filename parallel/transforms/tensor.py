"""Tensor parallelism with sequence parallelism, from the plan that a model declares.

Between blocks a rank holds [batch, seq/tp, hidden]; inside attention and feed-forward all of seq and 1/tp
of the heads or channels (Korthikanti et al. 2022, arXiv:2205.05198). Weights become plain local tensors and
the communication sits in module hooks, not in DTensor dispatch: that costs nothing per operator in eager
mode, and what FSDP shards afterwards is an ordinary tensor.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from common.model_plan import ModelPlan
from parallel.layout.mesh import Axis
from parallel.messages import collectives
from parallel.messages.collectives import SEQUENCE
from parallel.transforms import async_tensor


class VocabEmbedding(nn.Module):
    """Embedding of a rank's rows of the vocabulary: tokens [batch, seq] → [batch, seq/tp, hidden]."""

    def __init__(self, weight: nn.Parameter, axis: Axis) -> None:
        super().__init__()
        self.weight = weight
        self.first_row = axis.rank * weight.shape[0]
        self.group = axis.group

    def forward(self, tokens: Tensor) -> Tensor:
        local = tokens - self.first_row
        mine = (local >= 0) & (local < self.weight.shape[0])
        rows = F.embedding(torch.where(mine, local, 0), self.weight)
        assert self.group is not None
        return collectives.reduce_scatter(rows * mine.unsqueeze(-1).to(rows.dtype), SEQUENCE, self.group)


def tensor_parallel(
    model: nn.Module, plan: ModelPlan, axis: Axis, *, asynchronous: bool = False
) -> dict[str, int]:
    """Cut `model`, still on the meta device, to this rank's part. Returns parameter name → sharded dimension.

    Parameters that are not in it are whole on every tp rank and act on a share of the sequence or of the
    heads: their gradients are partial sums, which the engine adds up over tp. Every parameter must be under
    a rule of the plan. asynchronous: see `async_tensor`.
    """
    if axis.group is None:
        return {}
    styles = _ASYNCHRONOUS if asynchronous else _STYLES
    sharded: dict[str, int] = {}
    covered: set[str] = set()
    for name, module in list(model.named_modules()):
        for pattern, style in plan.tensor:
            if matches(pattern, name):
                dims = styles[style](model, name, module, axis)
                covered.update(f"{name}.{own}" for own, _ in module.named_parameters(recurse=False))
                sharded.update({f"{name}.{own}": dim for own, dim in dims.items()})
    bare = [name for name, _ in model.named_parameters() if name not in covered]
    assert not bare, f"the model's plan says nothing about {bare[0]} under tensor parallelism"
    return sharded


def matches(pattern: str, name: str) -> bool:
    """Whether a module's name fits a pattern, in which `*` stands for one component."""
    wanted, parts = pattern.split("."), name.split(".")
    return len(wanted) == len(parts) and all(w in ("*", p) for w, p in zip(wanted, parts))


def _cut(module: nn.Module, name: str, dim: int, axis: Axis) -> None:
    whole = getattr(module, name)
    assert whole.is_meta and whole.shape[dim] % axis.size == 0, (
        f"{name} {tuple(whole.shape)} over tp={axis.size}"
    )
    shape = list(whole.shape)
    shape[dim] //= axis.size
    setattr(module, name, nn.Parameter(whole.new_empty(shape)))


def _column(model: nn.Module, name: str, module: nn.Module, axis: Axis) -> dict[str, int]:
    """[out, in] by rows: whole input, a share of the output channels."""
    dims = {own: 0 for own, _ in module.named_parameters(recurse=False)}
    for own, dim in dims.items():
        _cut(module, own, dim, axis)
    return dims


def _row(model: nn.Module, name: str, module: nn.Module, axis: Axis) -> dict[str, int]:
    """[out, in] by columns: a share of the input channels, partial outputs summed and scattered along seq."""
    dims, group = _cut_columns(name, module, axis)
    module.register_forward_hook(lambda _, args, output: collectives.reduce_scatter(output, SEQUENCE, group))
    return dims


def _cut_columns(name: str, module: nn.Module, axis: Axis) -> tuple[dict[str, int], dist.ProcessGroup]:
    assert getattr(module, "bias", None) is None, f"{name}: a bias would be added tp times"
    _cut(module, "weight", 1, axis)
    assert axis.group is not None
    return {"weight": 1}, axis.group


def _gather(model: nn.Module, name: str, module: nn.Module, axis: Axis) -> dict[str, int]:
    """The module's first argument, hidden states, is gathered along seq."""
    group = axis.group
    assert group is not None

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (collectives.gather(args[0], SEQUENCE, group), *args[1:])

    module.register_forward_pre_hook(hook)
    return {}


def _sequence(model: nn.Module, name: str, module: nn.Module, axis: Axis) -> dict[str, int]:
    """Works on its share of the sequence or of the heads as it is."""
    return {}


def _vocab_embedding(model: nn.Module, name: str, module: nn.Module, axis: Axis) -> dict[str, int]:
    _cut_shared(model, module, axis)
    _replace(model, name, VocabEmbedding(module.weight, axis))  # type: ignore[arg-type]
    return {"weight": 0}


def _vocab_head(model: nn.Module, name: str, module: nn.Module, axis: Axis) -> dict[str, int]:
    _gather(model, name, module, axis)
    _cut_shared(model, module, axis)
    assert axis.group is not None
    rows = module.weight.shape[0]  # type: ignore[union-attr,index]
    module.shard = (axis.group, axis.rank * rows)  # type: ignore[assignment]  # see trainer.models.layers.head
    return {"weight": 0}


def _cut_shared(model: nn.Module, module: nn.Module, axis: Axis) -> None:
    """Cut `module.weight` by rows, once, and leave it shared with the modules that share it."""
    whole = module.weight
    if getattr(whole, "_cut_by_rows", False):
        return
    _cut(module, "weight", 0, axis)
    module.weight._cut_by_rows = True  # type: ignore[union-attr]
    for other in model.modules():
        if other is not module and other._parameters.get("weight") is whole:
            other.weight = module.weight


def _async_column(model: nn.Module, name: str, module: nn.Module, axis: Axis) -> dict[str, int]:
    assert isinstance(module, nn.Linear)
    dims = _column(model, name, module, axis)
    siblings = model.get_submodule(name.rpartition(".")[0]).children()
    number = sum(isinstance(other, async_tensor.ColumnLinear) for other in siblings)
    _replace(model, name, async_tensor.ColumnLinear(module, number))
    return dims


def _async_row(model: nn.Module, name: str, module: nn.Module, axis: Axis) -> dict[str, int]:
    assert isinstance(module, nn.Linear)
    dims, group = _cut_columns(name, module, axis)
    _replace(model, name, async_tensor.RowLinear(module, group))
    return dims


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _async_gather(model: nn.Module, name: str, module: nn.Module, axis: Axis) -> dict[str, int]:
    assert axis.group is not None
    async_tensor.gather(module, axis.group)
    return {}


_STYLES: Mapping[str, Callable[[nn.Module, str, nn.Module, Axis], dict[str, int]]] = {
    "column": _column,
    "row": _row,
    "gather": _gather,
    "sequence": _sequence,
    "attention_core": _sequence,  # works on its heads as it is; see parallel.transforms.context
    "vocab_embedding": _vocab_embedding,
    "vocab_head": _vocab_head,
}
_ASYNCHRONOUS = {**_STYLES, "gather": _async_gather, "column": _async_column, "row": _async_row}
