"""Tensor parallelism with sequence parallelism, from the plan that a model declares.

Between blocks a rank holds [batch, seq/tp, hidden]; inside attention and feed-forward all of seq and 1/tp
of the heads or channels (Korthikanti et al. 2022, arXiv:2205.05198). Weights become plain local tensors and
the communication sits in module hooks, not in DTensor dispatch: that costs nothing per operator in eager
mode, and FSDP afterwards shards ordinary tensors.

    block's input   [batch, seq/tp, hidden]
      gather          all-gather along seq         → [batch, seq, hidden]
      column          query, key, value; gate, up  → [batch, seq, channels/tp]
      …               heads or channels apart, no message
      row             output, down                 → a partial sum of [batch, seq, hidden]
                      reduce-scatter along seq     → [batch, seq/tp, hidden]

In backward an all-gather becomes a reduce-scatter, and the other way round.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from common.model_plan import ModelPlan, matches
from common.module_interfaces import HasLowRank, VocabParallel, VocabShard
from parallel.gradients.weight_gradients import DefersWeightGradients, linear
from parallel.layout.mesh import Axis
from parallel.messages import collectives
from parallel.messages.collectives import SEQUENCE
from parallel.transforms import async_tensor


class VocabEmbedding(nn.Module):
    """This rank's rows of an embedding table: tokens [batch, seq] → [batch, seq/tp, hidden]."""

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


class RowLinearWithBias(DefersWeightGradients):
    """A row-parallel linear layer whose bias is added once, to this rank's part of the summed output.

    weight [out, in/tp], bias [out]; [batch, seq, in/tp] → [batch, seq/tp, out].

    lora: the layer's branch of low rank, whose result is a partial sum as the product is; None: none.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter,
        group: dist.ProcessGroup,
        lora: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.group = weight, bias, group
        self.lora = lora

    def forward(self, x: Tensor) -> Tensor:
        product = linear(x, self.weight, None, self.deferred)
        if self.lora is not None:
            product = product + self.lora(x)
        return collectives.reduce_scatter(product, SEQUENCE, self.group) + self.bias


@dataclass(frozen=True)
class Target:
    """A module to which a style of the plan is applied.

    model: the whole model of this stage.
    name: the module's path in it.
    module: the module itself.
    axis: of tensor parallelism.
    cut: weights that have been cut by rows so far; tied modules share one.
    """

    model: nn.Module
    name: str
    module: nn.Module
    axis: Axis
    cut: set[nn.Parameter]

    @property
    def group(self) -> dist.ProcessGroup:
        assert self.axis.group is not None
        return self.axis.group

    def replace_by(self, module: nn.Module) -> None:
        parent, _, own = self.name.rpartition(".")
        setattr(self.model.get_submodule(parent), own, module)


def tensor_parallel(
    model: nn.Module,
    plan: ModelPlan,
    axis: Axis,
    *,
    asynchronous: bool = False,
    styles: "Styles | None" = None,
) -> dict[str, int]:
    """Cut `model`, still on the meta device, to this rank's part. Return parameter name → sharded dim.

    Parameters that are not in the result are whole on every tp rank and act on a part of the sequence or of
    the heads: their gradients are partial sums, which the engine adds up over tp. Every parameter must be
    under a rule of the plan.

    asynchronous: see `async_tensor`.
    styles: what each style of the plan does; None: what is described above.
    """
    if axis.group is None:
        return {}
    styles = styles or (_ASYNCHRONOUS if asynchronous else STYLES)
    sharded: dict[str, int] = {}
    covered: set[str] = set()
    cut: set[nn.Parameter] = set()
    for name, module in list(model.named_modules()):
        for pattern, style in plan.tensor:
            if matches(pattern, name):
                if style not in styles:
                    raise ValueError(
                        f"the model's plan gives {pattern!r} the style {style!r}, which there is not: one of "
                        f"{', '.join(styles)}"
                    )
                dims = styles[style](Target(model, name, module, axis, cut))
                covered.update(f"{name}.{own}" for own, _ in module.named_parameters(recurse=False))
                sharded.update({f"{name}.{own}": dim for own, dim in dims.items()})
    bare = [name for name, _ in model.named_parameters() if name not in covered]
    if bare:
        raise ValueError(
            f"parallel.tp={axis.size}: the model's plan has no style for parameter {bare[0]!r}: add one, or "
            "refuse tp in check_layout"
        )
    return sharded


def cut_dim(at: Target, name: str, dim: int) -> nn.Parameter:
    whole = getattr(at.module, name)
    assert whole.is_meta
    if whole.shape[dim] % at.axis.size:
        raise ValueError(
            f"parallel.tp={at.axis.size}: dim {dim} of {at.name}.{name} {tuple(whole.shape)} does not divide "
            "by it: refuse that in the model's check_layout"
        )
    shape = list(whole.shape)
    shape[dim] //= at.axis.size
    part = nn.Parameter(whole.new_empty(shape))
    setattr(at.module, name, part)
    return part


def column(at: Target) -> dict[str, int]:
    """[out, in] cut by rows: whole input, a part of the output channels."""
    dims = {own: 0 for own, _ in at.module.named_parameters(recurse=False)}
    for own, dim in dims.items():
        cut_dim(at, own, dim)
    return dims


def _row(at: Target) -> dict[str, int]:
    """[out, in] cut by columns: a part of the input channels. Outputs are summed and scattered along seq."""
    weight, group = cut_dim(at, "weight", 1), at.group
    bias = at.module._parameters.get("bias")
    if bias is not None:
        lora = at.module.lora if isinstance(at.module, HasLowRank) else None
        at.replace_by(RowLinearWithBias(weight, bias, group, lora))
    else:
        at.module.register_forward_hook(
            lambda _, args, output: collectives.reduce_scatter(output, SEQUENCE, group)
        )
    return {"weight": 1}


def _partial(at: Target) -> dict[str, int]:
    """[out, in] cut by columns. The partial sums stay as they are: a module around this one adds them up."""
    cut_dim(at, "weight", 1)
    return {"weight": 1}


def _split(at: Target) -> dict[str, int]:
    """The module computes for the whole sequence, and this rank keeps its part."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        part = output.shape[SEQUENCE] // at.axis.size
        return output.narrow(SEQUENCE, at.axis.rank * part, part)

    at.module.register_forward_hook(hook)
    return {}


def _alike(at: Target) -> dict[str, int]:
    """The module gets the whole sequence, and its output's gradient comes to 1/tp of itself on every rank."""
    _gather(at)
    share = 1 / at.axis.size
    at.module.register_forward_hook(lambda _, args, output: collectives.scale_gradient(output, share))
    return {}


def _gather(at: Target) -> dict[str, int]:
    """The module's first argument, hidden states, is gathered along seq."""
    group = at.group

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (collectives.gather(args[0], SEQUENCE, group), *args[1:])

    at.module.register_forward_pre_hook(hook)
    return {}


def unchanged(at: Target) -> dict[str, int]:
    """The module works on its part of the sequence, or of the heads, without a change."""
    return {}


def _vocab_embedding(at: Target) -> dict[str, int]:
    at.replace_by(VocabEmbedding(cut_rows(at), at.axis))
    return {"weight": 0}


def _vocab_head(at: Target) -> dict[str, int]:
    _gather(at)
    rows = cut_rows(at).shape[0]
    dims = {"weight": 0}
    if at.module._parameters.get("bias") is not None:
        cut_dim(at, "bias", 0)
        dims["bias"] = 0
    assert isinstance(at.module, VocabParallel), (
        f"{at.name}: {type(at.module).__name__} takes no vocabulary shard"
    )
    at.module.set_vocab_shard(VocabShard(at.group, first_row=at.axis.rank * rows))
    return dims


def cut_rows(at: Target) -> nn.Parameter:
    """Cut the module's weight by rows, unless that has been done, for all modules that share the weight."""
    whole: Any = at.module.weight
    if whole in at.cut:
        return whole
    part = cut_dim(at, "weight", 0)
    for other in at.model.modules():
        if other is not at.module and other._parameters.get("weight") is whole:
            other.weight = part
    at.cut.add(part)
    return part


def _async_column(at: Target) -> dict[str, int]:
    assert isinstance(at.module, nn.Linear)
    dims = column(at)
    siblings = at.model.get_submodule(at.name.rpartition(".")[0]).children()
    number = sum(isinstance(other, async_tensor.ColumnLinear) for other in siblings)
    at.replace_by(async_tensor.ColumnLinear(at.module, number))
    return dims


def _async_row(at: Target) -> dict[str, int]:
    assert isinstance(at.module, nn.Linear)
    cut_dim(at, "weight", 1)
    at.replace_by(async_tensor.RowLinear(at.module, at.group))
    return {"weight": 1}


def _async_gather(at: Target) -> dict[str, int]:
    async_tensor.gather(at.module, at.group)
    return {}


Styles = Mapping[str, Callable[[Target], dict[str, int]]]
"""Name of a style of `ModelPlan.tensor` → what it does to a module: returns parameter → dim that is cut."""

STYLES: Styles = {
    "column": column,
    "row": _row,
    "partial": _partial,
    "gather": _gather,
    "sequence": unchanged,
    "split": _split,
    "alike": _alike,
    "attention_core": unchanged,  # works on its heads as it is; see parallel.transforms.context
    "vocab_embedding": _vocab_embedding,
    "vocab_head": _vocab_head,
}
_ASYNCHRONOUS = {**STYLES, "gather": _async_gather, "column": _async_column, "row": _async_row}
