"""DeepSpeed's float32 truth on this rank: every parameter's master weights and moments, as live memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.deepspeed_engine.master_slice import MasterSlice
from parallel.deepspeed_engine.optim import STATES, FlatAdamW
from parallel.engine import Chunk
from parallel.relied_on import insist

# What this file and the engine use of DeepSpeed's optimisers that is not public, by ZeRO stage. The engine
# checks `_global_grad_norm` itself: it exists from the first step on.
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
class _SliceLocation:
    """Where this rank's slice of a parameter is among DeepSpeed's flat tensors.

    name, shape: of the parameter.
    flat: DeepSpeed's flat tensor of master weights.
    first: the slice's first element in `flat`.
    start: the slice's first element in the flattened parameter.
    length: number of elements.
    owned: this rank saves the slice.
    cuts, stretch: as in `MasterSlice`.
    """

    name: str
    shape: tuple[int, ...]
    flat: Tensor
    first: int
    start: int
    length: int
    owned: bool
    cuts: tuple[tuple[int, ...], ...] = ()
    stretch: tuple[int, int] | None = None


class Masters:
    """The master weights and moments of a DeepSpeed engine on this rank. Every method is collective.

    DeepSpeed computes with weights of its own, copies of the masters in the run's precision. `publish` copies
    the masters again after a change from outside.
    """

    def __init__(self, engine: Any, optimizer: FlatAdamW, names: dict[str, str]) -> None:
        """ValueError where DeepSpeed lacks something private that is used here.

        names: a parameter's name in the module → its canonical name.
        """
        self._engine = engine
        self._wrapper = engine.optimizer
        if self._wrapper is not optimizer:
            insist("deepspeed", self._wrapper, *_RELIED_ON[engine.zero_optimization_stage()])
        self._optimizer = optimizer
        self._locations: dict[int | None, list[_SliceLocation]] = {}
        self._copies: dict[str, MasterSlice] = {}
        whole = self._whole()
        loads = [0] * dist.get_world_size()
        for module_name, parameter in engine.module.named_parameters():
            name = names[module_name]
            if whole is None:
                group, location = self._locate(name, parameter)
            else:  # every rank has the whole: the rank with the fewest elements to save so far saves it
                owner = loads.index(min(loads))
                loads[owner] += parameter.numel()
                flat, shape, mine = whole[parameter], tuple(parameter.shape), owner == dist.get_rank()
                group, location = None, _SliceLocation(name, shape, flat, 0, 0, flat.numel(), mine)
            if location.length:
                self._locations.setdefault(group, []).append(location)

    @torch.no_grad()
    def each(self, *, write: bool) -> Iterator[MasterSlice]:
        """Yield every slice as live memory; one that is kept on disk is valid until the next is yielded.

        Moments that do not exist before the first step are allocated: a checkpoint may be loaded before it.

        write: write slices that are kept on disk back.
        """
        for masters in self._by_group(write=write):
            yield from masters

    def batches(self) -> Iterator[list[Chunk]] | None:
        """All slices as chunks of live memory, a batch for each group that is kept on disk, which is valid
        until the next is asked for; None where nothing is on disk.
        """
        if self._locations.keys() <= {None}:
            return None
        self.forget()
        groups = self._by_group(write=False)
        return ([chunk for master in masters for chunk in master.chunks()] for masters in groups)

    @torch.no_grad()
    def _by_group(self, *, write: bool) -> Iterator[list[MasterSlice]]:
        for group, locations in self._locations.items():
            if group is not None:
                self._wrapper._optimizer_states_and_gradient_swap_in(group)
            masters = []
            for location in locations:
                self._optimizer.allocate(location.flat)
                state = self._optimizer.state[location.flat]
                moments = {key: _part(state[key], location) for key in STATES}
                weight = _part(location.flat, location)
                masters.append(
                    MasterSlice(
                        location.name,
                        location.shape,
                        location.start,
                        weight,
                        moments,
                        location.owned,
                        group,
                        location.cuts,
                        location.stretch,
                    )
                )
            swaps_out = False
            try:
                yield masters
                swaps_out = write
            finally:  # also where whoever writes the batch fails
                if swaps_out and group is not None:
                    self._wrapper._optimizer_states_and_gradient_swap_out(group)
                elif group is not None:
                    self._wrapper._release_swap_buffers(group)

    def chunks(self) -> list[Chunk]:
        """All slices as chunks. Those kept on disk are copies; after a load, `publish` writes them back."""
        self.forget()
        found: list[Chunk] = []
        for master in self.each(write=False):
            if master.swap_group is not None:
                master = self._copies[master.name] = master.copy()
            found += master.chunks()
        return found

    def forget(self) -> None:
        """Drop the copies that `chunks` made."""
        self._copies.clear()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters, as they are now or as their chunks were loaded, into DeepSpeed's own weights."""
        if self._copies:
            for master in self.each(write=True):
                if master.swap_group is not None:
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
        """As ZeRO-3's own step does after the update."""
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
        """Parameter → its whole master, without ZeRO; None with ZeRO."""
        if self._engine.zero_optimization_stage() > 0:
            return None
        if self._wrapper is self._optimizer:  # float32: the parameter is its own master
            return {parameter: parameter for parameter in self._engine.module.parameters()}
        return {
            low: high
            for lows, highs in zip(self._wrapper.fp16_groups, self._wrapper.fp32_groups, strict=True)
            for low, high in zip(lows, highs, strict=True)
        }

    def _locate(self, name: str, parameter: Any) -> tuple[int | None, _SliceLocation]:
        """(ZeRO-3's group of state on disk or None, location) of a sharded parameter's slice."""
        wrapper = self._wrapper
        if (
            self._engine.zero_optimization_stage() == 3
        ):  # each parameter is cut in equal parts, the last padded
            group, first, length = wrapper.grad_position[wrapper.get_param_id(parameter)]
            start = length * dist.get_rank()
            length = max(0, min(length, parameter.ds_numel - start))
            flat = wrapper.fp32_partitioned_groups_flat[group]
            on_disk = group if wrapper._swappable_optimizer_subgroup(group) else None
            shape, parts = tuple(parameter.ds_shape), ((dist.get_world_size(),),)
            return on_disk, _SliceLocation(name, shape, flat, first, start, length, True, parts)
        shape = tuple(parameter.shape)
        insist("deepspeed", parameter, "_hp_mapping")
        mapping = parameter._hp_mapping  # ZeRO-1 and 2: a whole group is cut in equal parts
        if mapping is None:
            return None, _SliceLocation(name, shape, torch.empty(0), 0, 0, 0, False)
        (flat,) = self._optimizer.param_groups[mapping.param_group_index]["params"]
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        stretch = dist.get_rank() * flat.numel() + here.start - there.start, flat.numel()
        parts = ((dist.get_world_size(),),)
        return None, _SliceLocation(
            name, shape, flat, here.start, there.start, here.numel, True, parts, stretch
        )


def _part(flat: Tensor, location: _SliceLocation) -> Tensor:
    return flat.detach().view(-1).narrow(0, location.first, location.length)
