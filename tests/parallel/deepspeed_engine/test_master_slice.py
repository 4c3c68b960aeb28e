"""A run of a flattened tensor as blocks of the tensor: so a rank saves its slice of ZeRO's flat tensors."""

from itertools import pairwise
from math import prod

import pytest
import torch

from parallel.deepspeed_engine.master_slice import MasterSlice
from parallel.layout.flat import chunk_bounds

SHAPES = [(), (1,), (7,), (3, 5), (1, 6), (6, 1), (2, 3, 4), (3, 1, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_run_is_tiled_once_and_in_order(shape: tuple[int, ...]) -> None:
    elements = prod(shape)
    for start in range(elements + 1):
        for stop in range(start, elements + 1):
            flat = torch.zeros(elements)
            cut = list(chunk_bounds(shape, start, stop))
            for bounds in cut:
                block = flat.view(shape)
                for dim, (at, size) in enumerate(zip(bounds.offset, bounds.shape, strict=True)):
                    block = block.narrow(dim, at, size)
                assert block.is_contiguous() and block.storage_offset() == bounds.first
                block += 1
            assert flat[start:stop].eq(1).all() and flat.sum() == stop - start
            assert all(a.first + prod(a.shape) == b.first for a, b in pairwise(cut))
            assert len(cut) <= max(1, 2 * len(shape) - 1)


def test_chunks_are_the_live_memory() -> None:
    weight = torch.arange(2.0, 9.0)
    master = MasterSlice("w", (4, 3), 2, weight, {"exp_avg": torch.zeros(7)}, owned=True)
    whole = torch.full((4, 3), -1.0)
    for chunk in master.chunks():
        if chunk.name == "model.w":
            rows, columns = (slice(at, at + size) for at, size in zip(chunk.offset, chunk.tensor.shape))
            whole[rows, columns] = chunk.tensor
            chunk.tensor.mul_(10)
    assert whole.tolist() == [[-1, -1, 2], [3, 4, 5], [6, 7, 8], [-1, -1, -1]]
    assert weight.tolist() == [20, 30, 40, 50, 60, 70, 80]
    assert {chunk.name for chunk in master.chunks()} == {"model.w", "optim.exp_avg.w"}
