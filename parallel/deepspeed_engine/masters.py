"""Where DeepSpeed keeps the float32 truth: every parameter's master weights and moments, as live memory.

DeepSpeed flattens parameters and cuts the flat tensor wherever the ranks' shares end. A run of a flattened
tensor is a few boxes of the tensor itself, so a rank's share can be said in the checkpoint's terms without
gathering or copying; `safe_get_full_fp32_param` and its like would gather every tensor on every rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.deepspeed_engine.optim import STATES, FlatAdamW
from parallel.engine import Chunk
from parallel.relied_on import insist

# What this module and the engine use of DeepSpeed's optimisers that is not public, by ZeRO stage.
# `_global_grad_norm` is there from the first step on, and looked for when it is read.
_SHARDED = ("update_lp_params",)
_RELIED_ON = {
    0: ("fp16_groups", "fp32_groups"),
    1: _SHARDED,
    2: _SHARDED,
    3: (
        "_optimizer_states_and_gradient_swap_in",
        "_optimizer_states_and_gradient_swap_out",
        "_partition_all_parameters",
        "_reassign_or_swap_out_partitioned_parameters",
        "_release_swap_buffers",
        "_swappable_optimizer_subgroup",
        "fp16_groups",
        "fp32_partitioned_groups_flat",
        "get_param_id",
        "grad_position",
        "persistent_parameters",
    ),
}


@dataclass(frozen=True)
class Master:
    """A rank's share of one parameter: elements start … start + len(weight) of the flattened tensor.

    weight, and the moments by state name: float32, one-dimensional, live memory. owned: this rank saves it.
    group: the part of ZeRO-3's state that is on a disk and was brought in for this; None where nothing is.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    weight: Tensor
    moments: dict[str, Tensor]
    owned: bool
    group: int | None = None

    def chunks(self) -> Iterator[Chunk]:
        for prefix, flat in (
            ("model", self.weight),
            *((f"optim.{key}", moment) for key, moment in self.moments.items()),
        ):
            for box in boxes(self.shape, self.start, self.start + len(flat)):
                part = flat.narrow(0, box.first - self.start, prod(box.shape)).view(box.shape)
                yield Chunk(f"{prefix}.{self.name}", part, self.shape, box.offset, self.owned)

    def fill(self, whole: Tensor) -> None:
        """Take the share's values from the whole parameter."""
        self.weight.copy_(whole.flatten().narrow(0, self.start, len(self.weight)))

    def copy(self) -> "Master":
        moments = {key: moment.clone() for key, moment in self.moments.items()}
        return replace(self, weight=self.weight.clone(), moments=moments)

    def take(self, other: "Master") -> None:
        self.weight.copy_(other.weight)
        for key, moment in self.moments.items():
            moment.copy_(other.moments[key])


@dataclass(frozen=True)
class Box:
    """A block of a tensor that is contiguous in it; `first` is its first element in the flattened tensor."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    first: int


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Elements start … stop of the flattened tensor as blocks of it, in order: at most 2·dims - 1."""
    if start >= stop:
        return
    if not shape:
        yield Box((), (), start)
        return
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows
    if first > last:  # inside one row
        yield from _in_row(shape, last, start, stop)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        zeros = (0,) * (len(shape) - 1)
        yield Box((first, *zeros), (last - first, *shape[1:]), first * row)
    yield from _in_row(shape, last, last * row, stop)


def _in_row(shape: Sequence[int], index: int, start: int, stop: int) -> Iterator[Box]:
    base = index * prod(shape[1:])
    for box in boxes(shape[1:], start - base, stop - base):
        yield Box((index, *box.offset), (1, *box.shape), base + box.first)


@dataclass(frozen=True)
class _Share:
    """`length` elements of a flattened parameter, from `start`; in its flat master, from `first`."""

    name: str
    shape: tuple[int, ...]
    flat: Tensor
    first: int
    start: int
    length: int
    owned: bool


class Masters:
    """A DeepSpeed engine's masters on this rank. Every method is collective."""

    def __init__(self, engine: Any, optimizer: FlatAdamW, names: dict[str, str]) -> None:
        """`names`: the module's name of a parameter → its name in a checkpoint.

        ValueError where DeepSpeed has not all that is used of it.
        """
        self._engine = engine
        self._wrapper = engine.optimizer
        if self._wrapper is not optimizer:
            insist("deepspeed", self._wrapper, *_RELIED_ON[engine.zero_optimization_stage()])
        self._optimizer = optimizer
        self._shares: dict[int | None, list[_Share]] = {}
        self._copies: dict[str, Master] = {}
        whole = self._whole()
        loads = [0] * dist.get_world_size()
        for module_name, parameter in engine.module.named_parameters():
            name = names[module_name]
            if whole is None:
                group, share = self._cut(name, parameter)
            else:  # every rank has all of it: the one with the least to save saves it
                owner = loads.index(min(loads))
                loads[owner] += parameter.numel()
                flat, shape, mine = whole[parameter], tuple(parameter.shape), owner == dist.get_rank()
                group, share = None, _Share(name, shape, flat, 0, 0, flat.numel(), mine)
            if share.length:
                self._shares.setdefault(group, []).append(share)

    @torch.no_grad()
    def each(self, *, write: bool) -> Iterator[Master]:
        """Every share, as live memory; what lies on a disk only until the next one, and kept if `write`.

        Moments that no step has made yet are made here: a checkpoint may be loaded before the first step.
        """
        for group, shares in self._shares.items():
            if group is not None:
                self._wrapper._optimizer_states_and_gradient_swap_in(group)
            for share in shares:
                self._optimizer.allocate(share.flat)
                state = self._optimizer.state[share.flat]
                moments = {key: _part(state[key], share) for key in STATES}
                weight = _part(share.flat, share)
                yield Master(share.name, share.shape, share.start, weight, moments, share.owned, group)
            if group is not None and write:
                self._wrapper._optimizer_states_and_gradient_swap_out(group)
            elif group is not None:
                self._wrapper._release_swap_buffers(group)

    def chunks(self) -> list[Chunk]:
        """All shares as chunks. Those on a disk are copies: `publish` takes back what was loaded."""
        self.forget()
        found: list[Chunk] = []
        for master in self.each(write=False):
            if master.group is not None:
                master = self._copies[master.name] = master.copy()
            found += master.chunks()
        return found

    def forget(self) -> None:
        """Let go of the copies that `chunks` made."""
        self._copies.clear()

    @torch.no_grad()
    def publish(self) -> None:
        """Make the model compute with the masters as they are now, or as their chunks were loaded."""
        if self._copies:
            for master in self.each(write=True):
                if master.group is not None:
                    master.take(self._copies[master.name])
            self.forget()
        stage = self._engine.zero_optimization_stage()
        if stage == 0 and self._wrapper is not self._optimizer:
            for lows, highs in zip(self._wrapper.fp16_groups, self._wrapper.fp32_groups, strict=True):
                torch._foreach_copy_(list(lows), list(highs))
        elif stage in (1, 2):
            self._wrapper.update_lp_params()
        elif stage == 3:
            self._publish_sharded()

    def _publish_sharded(self) -> None:
        """What ZeRO-3's own step does after the update."""
        wrapper = self._wrapper
        wrapper._partition_all_parameters()
        for group in range(len(wrapper.fp16_groups)):
            on_disk = wrapper._swappable_optimizer_subgroup(group)
            if on_disk:
                wrapper._optimizer_states_and_gradient_swap_in(group)
            wrapper._reassign_or_swap_out_partitioned_parameters(group)
            if on_disk:
                wrapper._release_swap_buffers(group)
        if wrapper.persistent_parameters:  # small ones stay gathered
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)

    def _whole(self) -> dict[nn.Parameter, Tensor] | None:
        """parameter → its whole master, where nothing is sharded; None where it is."""
        if self._engine.zero_optimization_stage() > 0:
            return None
        if self._wrapper is self._optimizer:  # float32: the parameter is its own master
            return {parameter: parameter for parameter in self._engine.module.parameters()}
        return {
            low: high
            for lows, highs in zip(self._wrapper.fp16_groups, self._wrapper.fp32_groups, strict=True)
            for low, high in zip(lows, highs, strict=True)
        }

    def _cut(self, name: str, parameter: Any) -> tuple[int | None, _Share]:
        """(group on a disk, share) of a sharded parameter."""
        wrapper = self._wrapper
        if hasattr(parameter, "ds_id"):  # ZeRO-3: each parameter is cut in equal parts, the last one padded
            group, first, length = wrapper.grad_position[wrapper.get_param_id(parameter)]
            start = length * dist.get_rank()
            length = max(0, min(length, parameter.ds_numel - start))
            flat = wrapper.fp32_partitioned_groups_flat[group]
            on_disk = group if wrapper._swappable_optimizer_subgroup(group) else None
            return on_disk, _Share(name, tuple(parameter.ds_shape), flat, first, start, length, True)
        shape = tuple(parameter.shape)
        insist("deepspeed", parameter, "_hp_mapping")
        mapping = parameter._hp_mapping  # ZeRO-1 and 2: a whole group is cut in equal parts
        if mapping is None:
            return None, _Share(name, shape, torch.empty(0), 0, 0, 0, False)
        (flat,) = self._optimizer.param_groups[mapping.param_group_index]["params"]
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        return None, _Share(name, shape, flat, here.start, there.start, here.numel, True)


def _part(flat: Tensor, share: _Share) -> Tensor:
    return flat.detach().view(-1).narrow(0, share.first, share.length)
