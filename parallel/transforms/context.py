"""Context parallelism: ranks share each sequence, and exchange it for heads inside attention.

DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv:2309.14509): between attentions a rank holds 1/cp of the
tokens; inside, an all-to-all gives it all tokens of 1/cp of the heads.

    between           [batch, heads,    seq/cp, head_dim]    q, k, v of this rank's tokens
      all-to-all
    attention         [batch, heads/cp, seq,    head_dim]
      all-to-all
    between           [batch, heads,    seq/cp, head_dim]    the result

Every rank does the same work under a causal mask, and a message shrinks as cp grows. For parameters the cp
ranks are data ranks: FSDP shards and sums over them too.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.model_plan import ModelPlan, matches
from common.module_interfaces import SharesSequence
from common.objective import ModelInputs
from parallel.layout.mesh import Axis
from parallel.messages import collectives
from parallel.messages.collectives import SEQUENCE

STYLE = "attention_core"
"""Style of a module that maps (q, k, v, …), each [batch, heads, seq, head_dim], to the shape of q."""

_HEADS, _TOKENS = 1, 2


def slice_inputs(inputs: ModelInputs, axis: Axis) -> ModelInputs:
    """Cut this rank's part out of the tensors that have a sequence, and count `inputs.places` from its start.
    `positions` are added where missing.
    """
    if axis.size == 1:
        return inputs
    rows, seq = inputs.x.shape[:2]
    kwargs, dims = dict(inputs.kwargs), {**inputs.sequence_dims, "positions": SEQUENCE}
    kwargs.setdefault("positions", torch.arange(seq, device=inputs.x.device).expand(rows, seq))

    def mine(whole: Tensor, dim: int) -> Tensor:
        part = whole.shape[dim] // axis.size
        return whole.narrow(dim, axis.rank * part, part).contiguous()

    def counted_from_mine(places: Tensor) -> Tensor:
        part = seq // axis.size
        local = places - axis.rank * part
        return torch.where((local >= 0) & (local < part) & (places >= 0), local, -1)

    parts = {name: mine(t, dims[name]) if name in dims else t for name, t in kwargs.items()}
    parts |= {name: counted_from_mine(kwargs[name]) for name in inputs.places}
    return ModelInputs(mine(inputs.x, SEQUENCE), parts, dims, inputs.places)


def context_parallel(model: nn.Module, plan: ModelPlan, axis: Axis) -> None:
    """Exchange sequence for heads around every attention. ValueError if the model declares none."""
    if axis.group is None:
        return
    patterns = [pattern for pattern, style in plan.tensor if style == STYLE]
    cores = [m for name, m in model.named_modules() if any(matches(p, name) for p in patterns)]
    if not cores:
        raise ValueError(
            f"parallel.cp={axis.size}: this kind of model has no attention to share; set it to 1"
        )
    for core in cores:
        _exchange_around(core, axis.group)
    if isinstance(model, SharesSequence):
        model.set_sequence_ranks(axis.size)


def _exchange_around(core: nn.Module, group: dist.ProcessGroup) -> None:
    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # Queries, keys and values in one message: the cost of small messages is their number.
        heads = collectives.exchange(args[:3], split=_HEADS, join=_TOKENS, beside=_HEADS, group=group)
        return (*heads, *args[3:])

    def after(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        (tokens,) = collectives.exchange([out], split=_TOKENS, join=_HEADS, beside=_HEADS, group=group)
        return tokens

    core.register_forward_pre_hook(before)
    core.register_forward_hook(after)
