"""What one step sends: every collective by mesh axis, with its bytes; and formulas to compare it with."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.relied_on import borrow

TorchDispatchMode: Any = borrow("torch", "torch.utils._python_dispatch", "TorchDispatchMode")


@dataclass
class Traffic:
    """Of this rank. calls: of collectives; sent_bytes: under a ring algorithm, which sends the least."""

    calls: int = 0
    sent_bytes: float = 0.0


class CommCounter(TorchDispatchMode):
    """`with CommCounter(engine.axes) as counter: engine.step(…)` → counter.traffic[axis, kind].

    axes: name of a process group → axis. Other groups count as "world"; an axis that spans the world has the
        world's group.

    Bytes sent by one of n ranks, for a tensor of N bytes (the larger of input and output): all-reduce
    2N(n-1)/n, all-gather and reduce-scatter N(n-1)/n, point-to-point N (Thakur et al. 2005,
    doi:10.1177/1094342005051521). Eager mode only: collectives inside a compiled graph are not counted.
    """

    def __init__(self, axes: Mapping[str, str]) -> None:
        super().__init__()
        self.axes = axes
        self.traffic: dict[tuple[str, str], Traffic] = defaultdict(Traffic)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self._count(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))

    def _count(self, operator: str, args: tuple[Any, ...]) -> None:
        if operator not in _KINDS:
            return
        kind, factor = _KINDS[operator]
        group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject))
        size = max(_bytes(arg) for arg in args)
        ranks = group.size()
        entry = self.traffic[self.axes.get(group.group_name, "world"), kind]
        entry.calls += 1
        if operator == "alltoall_base_" and args[4]:  # rank → its part of the input
            entry.sent_bytes += _bytes(args[1]) * (1 - args[4][group.rank()] / max(1, sum(args[4])))
        else:
            entry.sent_bytes += size if factor is None else factor * size * (ranks - 1) / ranks

    def of(self, axis: str) -> Traffic:
        """All kinds of one axis together."""
        entries = [entry for (name, _), entry in self.traffic.items() if name == axis]
        return Traffic(sum(e.calls for e in entries), sum(e.sent_bytes for e in entries))


# operator → (kind, multiple of N(n-1)/n that a rank sends; None: N itself)
_KINDS: dict[str, tuple[str, float | None]] = {
    "allreduce_": ("all-reduce", 2.0),
    "_allgather_base_": ("all-gather", 1.0),
    "allgather_": ("all-gather", 1.0),
    "_reduce_scatter_base_": ("reduce-scatter", 1.0),
    "alltoall_base_": ("all-to-all", 1.0),
    "send": ("send", None),
}


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(_bytes(item) for item in value)
    return 0


def data_bytes(
    parameters: int, *, ranks: int, zero: int, micro_batches: int, parameter_bytes: int = 4
) -> float:
    """Bytes a rank sends over the data axes in one step.

    Gradients are reduced in float32: once (zero 0 and 1) or after every micro-batch (2 and 3). Parameters are
    gathered once (zero 1 and 2), or twice a micro-batch (3).

    parameters: number of those that a stage has on a tp rank.
    ranks: of the data axes.
    zero: the ZeRO stage.
    micro_batches: of one step on one data rank.
    parameter_bytes: of a gathered element.
    """
    gathers = (0, 1, 1, 2 * micro_batches)[zero]
    reductions = micro_batches if zero >= 2 else 1
    if zero == 0:
        return 2 * 4 * parameters * (ranks - 1) / ranks
    return (parameter_bytes * gathers + 4 * reductions) * parameters * (ranks - 1) / ranks


def tensor_bytes(
    hidden_states: int,
    *,
    ranks: int,
    blocks: int,
    micro_batches: int,
    ends: int = 2,
    element_bytes: int = 4,
) -> float:
    """Bytes a rank sends over tp for activations in one step, without recomputation.

    4 gathers and 4 scatters a block, together the bytes of plain tensor parallelism's 4 all-reduces
    (Korthikanti et al. 2022, section 4.2.2), and 1 + 1 for each of the ends, embedding and head.

    hidden_states: elements of [micro-batch, seq, hidden].
    ranks: of tp.
    blocks: on this rank.
    micro_batches: of one step on one data rank.
    ends: how many of embedding and head are on this rank.
    element_bytes: of a hidden state's element.
    """
    return (8 * blocks + 2 * ends) * micro_batches * element_bytes * hidden_states * (ranks - 1) / ranks


def context_bytes(
    swapped: int, *, ranks: int, blocks: int, micro_batches: int, element_bytes: int = 4
) -> float:
    """Bytes a rank sends over cp in one step, without recomputation (Jacobs et al. 2023, section 3.2).

    Queries, keys, values and attention's result are exchanged in forward, and their gradients in backward.

    swapped: elements of these four of one micro-batch on this rank.
    ranks: of cp.
    blocks, micro_batches, element_bytes: as in `tensor_bytes`.
    """
    return 2 * blocks * micro_batches * element_bytes * swapped * (ranks - 1) / ranks


def pipeline_bytes(hidden_states: int, *, sends: int, micro_batches: int, element_bytes: int = 4) -> float:
    """Bytes a rank sends over pp in one step. sends: activations on and gradients back, of a micro-batch."""
    return sends * micro_batches * element_bytes * hidden_states
