"""Where DeepSpeed keeps the float32 truth: every parameter's master weights and moments, as live memory.

DeepSpeed flattens parameters and cuts the flat tensor wherever the ranks' shares end. A run of a flattened tensor
is a few boxes of the tensor itself, so a rank's share can be named in the checkpoint format without gathering or
copying anything. `safe_get_full_fp32_param` and its like would gather every tensor on every rank instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.deepspeed_optim import STATES, FlatAdamW
from parallel.engine import Chunk


@dataclass(frozen=True)
class Master:
    """A rank's share of one parameter: elements start … start + len(weight) of the flattened tensor.

    weight, and the moments by state name: float32, one-dimensional, live memory. owned: this rank saves it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    weight: Tensor
    moments: dict[str, Tensor]
    owned: bool

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


@dataclass(frozen=True)
class Box:
    """A block of a tensor that is contiguous in it; `first` is its first element in the flattened tensor."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    first: int


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Elements start … stop of the flattened tensor as blocks of the tensor, in order: at most 2·dims - 1 of them."""
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


def masters(engine: Any, optimizer: FlatAdamW, names: dict[str, str]) -> list[Master]:
    """This rank's share of every parameter. `names`: the module's name of a parameter → its name in a checkpoint.

    Moments that no step has made yet are made here, so that a checkpoint can be loaded before the first step.
    """
    wrapper, found = engine.optimizer, []
    whole = _whole_masters(engine, wrapper)
    loads = [0] * dist.get_world_size()
    for module_name, parameter in engine.module.named_parameters():
        if whole is not None:  # every rank has all: the lightest saves it
            flat, first, start, length = whole[parameter], 0, 0, parameter.numel()
            owner = loads.index(min(loads))
            loads[owner] += length
            owned = owner == dist.get_rank()
        else:
            flat, first, start, length = _share(wrapper, optimizer, parameter)
            owned = True
        if length == 0:
            continue
        optimizer.allocate(flat)
        moments = {key: _part(optimizer.state[flat][key], first, length) for key in STATES}
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        found.append(Master(names[module_name], shape, start, _part(flat, first, length), moments, owned))
    return found


def _part(flat: Tensor, first: int, length: int) -> Tensor:
    return flat.detach().view(-1).narrow(0, first, length)


def _whole_masters(engine: Any, wrapper: Any) -> dict[nn.Parameter, Tensor] | None:
    """parameter → its whole master, where nothing is sharded; None where it is."""
    if engine.zero_optimization_stage() > 0:
        return None
    if isinstance(wrapper, FlatAdamW):  # float32: the parameter is its own master
        return {parameter: parameter for parameter in engine.module.parameters()}
    return {
        low: high
        for lows, highs in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
        for low, high in zip(lows, highs, strict=True)
    }


def _share(wrapper: Any, optimizer: FlatAdamW, parameter: Any) -> tuple[Tensor, int, int, int]:
    """(flat master, first element in it, first element in the flattened parameter, number of elements)."""
    if hasattr(parameter, "ds_id"):  # ZeRO-3: each parameter is cut in equal parts, the last one padded
        group, first, length = wrapper.grad_position[wrapper.get_param_id(parameter)]
        start = length * dist.get_rank()
        length = max(0, min(length, parameter.ds_numel - start))
        return wrapper.fp32_partitioned_groups_flat[group], first, start, length
    mapping = parameter._hp_mapping  # ZeRO-1 and 2: a group is cut in equal parts
    if mapping is None:
        return torch.empty(0), 0, 0, 0
    (flat,) = optimizer.param_groups[mapping.param_group_index]["params"]
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return flat, here.start, there.start, here.numel


@torch.no_grad()
def publish(engine: Any) -> None:
    """Make the model compute with the masters as they are now. Collective."""
    wrapper = engine.optimizer
    if isinstance(wrapper, FlatAdamW):
        return
    if engine.zero_optimization_stage() == 0:
        for lows, highs in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            torch._foreach_copy_(list(lows), list(highs))
    elif engine.zero_optimization_stage() < 3:
        wrapper.update_lp_params()
    else:  # what its own step does after the update
        wrapper._partition_all_parameters()
        for group in range(len(wrapper.fp16_groups)):
            wrapper._reassign_or_swap_out_partitioned_parameters(group)
        if wrapper.persistent_parameters:  # small ones stay gathered
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)
