"""How tensors are cut, described once for all pieces: the manifest's size, and what is refused."""

from dataclasses import replace
from math import prod
from pathlib import Path

import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpointed import FakeEngine, make
from parallel.deepspeed_engine.master_slice import MasterSlice
from parallel.engine import Chunk
from stored import write
from trainer.checkpoint import loading, store
from trainer.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from trainer.checkpoint.merge import Part, Share, merge
from trainer.checkpoint.pieces import cuts
from trainer.state import TrainState

dims = st.tuples(st.integers(1, 12), st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple))


CutTensor = tuple[tuple[int, ...], cuts.Parts, cuts.Stretch | None]


@st.composite
def cut_tensors(draw: st.DrawFn) -> CutTensor:
    """(shape, parts, stretch): cut by dims, flattened, or as part of a vector."""
    sizes = draw(st.lists(dims, max_size=3))
    whole, parts = tuple(size for size, _ in sizes), tuple(counts for _, counts in sizes)
    kind = draw(st.sampled_from(["dims", "flat", "vector"]))
    if kind == "vector":
        stretch = cuts.Stretch(draw(st.integers(0, 40)), draw(st.integers(1, 40)))
        least = -(-(stretch.first + prod(whole)) // stretch.each)
        return whole, ((least + draw(st.integers(0, 2)),),), stretch
    return whole, ((draw(st.integers(1, 15)),),) if kind == "flat" else parts, None


@settings(max_examples=300, deadline=None)
@given(cut_tensors())
def test_pieces_tile_the_tensor_and_know_their_number(cut: CutTensor) -> None:
    whole, parts, stretch = cut
    seen, held = torch.zeros(whole), [0] * cuts.count(parts)
    for number, offset, shape in cuts.overlapping(parts, whole, (0,) * len(whole), whole, stretch):
        assert cuts.number_of(parts, whole, offset, shape, stretch) == number
        seen[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))] += 1
        held[number] += prod(shape)
    assert bool((seen == 1).all())
    assert held == [cuts.elements(parts, whole, number, stretch) for number in range(len(held))]
    if stretch is None:
        assert cuts.filled(parts, whole) in (None, {number for number, size in enumerate(held) if size})


@settings(max_examples=300, deadline=None)
@given(cut_tensors(), st.data())
def test_the_pieces_that_overlap_a_block_are_all_found(cut: CutTensor, data: st.DataObject) -> None:
    whole, parts, stretch = cut
    offset = tuple(data.draw(st.integers(0, size - 1)) for size in whole)
    shape = tuple(data.draw(st.integers(1, size - o)) for size, o in zip(whole, offset, strict=True))
    found = list(cuts.overlapping(parts, whole, offset, shape, stretch))
    expected = [
        (number, at, size)
        for number, at, size in cuts.overlapping(parts, whole, (0,) * len(whole), whole, stretch)
        if all(max(a, o) < min(a + n, o + m) for a, n, o, m in zip(at, size, offset, shape, strict=True))
    ]
    assert found == expected


def test_a_part_of_a_vector_that_has_no_such_part_has_no_number() -> None:
    numbers = [
        cuts.number_of(((2,),), (2, 2), (0, 0), (2, 2), cuts.Stretch(first, 4)) for first in (-4, 0, 4, 8)
    ]
    assert numbers == [None, 0, 1, None]


def sharded(tensor: Tensor, name: str, tp: int, shards: int) -> list[list[Chunk]]:
    """The chunks of tp × shards ranks: dim 0 is cut by tp first, and each part by ZeRO."""
    parts = ((tp, shards), *((1,),) * (tensor.dim() - 1))
    starts, lengths = cuts.spans(len(tensor), parts[0])
    return [
        [
            Chunk(
                name,
                tensor[at : at + n],
                tuple(tensor.shape),
                (at, *(0,) * (tensor.dim() - 1)),
                True,
                parts,
            )
        ]
        if n
        else []
        for at, n in zip(starts, lengths, strict=True)
    ]


@pytest.mark.parametrize(("tp", "shards"), [(1, 5), (2, 4), (4, 3)])
def test_a_cut_is_written_once_and_loads_into_any_other(tmp_path: Path, tp: int, shards: int) -> None:
    tensors = {"a": torch.randn(20, 3), "b": torch.randn(20, 3), "c": torch.randn(8)}
    ranks: list[list[Chunk]] = [[] for _ in range(tp * shards)]
    for name, tensor in tensors.items():
        for mine, chunks in zip(ranks, sharded(tensor, name, tp, shards), strict=True):
            mine += chunks
    folder = write(tmp_path, ranks)
    content = orjson.loads((folder / MANIFEST).read_bytes())
    assert "pieces" not in str(content["tensors"])
    assert content["tensors"]["a"]["cut"] == content["tensors"]["b"]["cut"]
    for name, tensor in tensors.items():
        assert torch.equal(store.read_tensor(folder, name), tensor)
        part = torch.zeros(tensor[3:7].shape)
        at = (3, *(0,) * (tensor.dim() - 1))
        store.load(folder, [Chunk(name, part, tuple(tensor.shape), at, False)])
        assert torch.equal(part, tensor[3:7])


def flattened(tensors: dict[str, Tensor], ranks: int, parts: cuts.Parts) -> list[list[Chunk]]:
    """The chunks of each of so many ranks of DeepSpeed's ZeRO-3."""
    found: list[list[Chunk]] = []
    for rank in range(ranks):
        found.append([])
        for name, tensor in tensors.items():
            each = -(-tensor.numel() // ranks)
            mine = tensor.flatten()[rank * each : (rank + 1) * each]
            slice_ = MasterSlice(
                name, tuple(tensor.shape), rank * each, mine, {}, owned=True, swap_group=None, cuts=parts
            )
            found[-1] += slice_.chunks()
    return found


@pytest.mark.parametrize("ranks", [1, 3, 7])
@pytest.mark.parametrize("described", [True, False], ids=["by its cut", "one by one, as before"])
def test_a_flattened_tensor_is_described_by_its_cut_and_loads_into_any_other(
    tmp_path: Path, ranks: int, described: bool
) -> None:
    tensors = {"a": torch.randn(5, 3, 2), "b": torch.randn(4, 5), "c": torch.randn(8), "d": torch.randn(())}
    folder = write(tmp_path, flattened(tensors, ranks, ((ranks,),) if described else ()))
    manifest = read_manifest(folder)
    cut_ones = [name for name, entry in manifest.tensors.items() if entry.cut is not None]
    assert len(cut_ones) == (4 if described or ranks == 1 else 1), "a scalar is whole"
    for name, tensor in tensors.items():
        assert torch.equal(store.read_tensor(folder, f"model.{name}"), tensor)
    for others in (flattened, lambda *_: [sharded(tensors["b"], "model.b", 1, 4)[1]]):
        for chunks in others({n: torch.zeros_like(t) for n, t in tensors.items()}, 4, ()):
            chunks = [replace(chunk, tensor=torch.zeros_like(chunk.tensor)) for chunk in chunks]
            for load in (store.load, loaded_and_proven):
                load(folder, chunks, manifest)
                for chunk in chunks:
                    block = tuple(
                        slice(o, o + n) for o, n in zip(chunk.offset, chunk.tensor.shape, strict=True)
                    )
                    assert torch.equal(chunk.tensor, tensors[chunk.name.removeprefix("model.")][block])
                    chunk.tensor.zero_()


def loaded_and_proven(folder: Path, chunks: list[Chunk], manifest: Manifest) -> None:
    loading.load_and_prove(folder, chunks, manifest, sorted(manifest.files))


def test_a_slice_without_one_of_its_blocks_is_refused(tmp_path: Path) -> None:
    ranks = flattened({"w": torch.randn(4, 5)}, 3, ((3,),))
    assert len(ranks[1]) == 2
    with pytest.raises(RuntimeError, match=r"tensor model\.w: "):
        write(tmp_path, [ranks[0], ranks[1][:1], ranks[2]])


def test_a_piece_that_no_rank_or_that_two_ranks_wrote_is_refused(tmp_path: Path) -> None:
    ranks = sharded(torch.randn(8, 2), "w", 1, 4)
    with pytest.raises(RuntimeError, match="w: 1 of 4 pieces were written by no rank, the first is 2"):
        write(tmp_path / "none", [*ranks[:2], ranks[3]])
    with pytest.raises(RuntimeError, match="tensor w: piece 1 was written by ranks 1 and 4"):
        write(tmp_path / "two", [*ranks, ranks[1]])
    table = (("w", "F32", (8, 2)),)
    wider = Share.of(1, ((2,), (1,)), 1, (("w", "F32", (8, 3)),))
    with pytest.raises(RuntimeError, match="tensor w: ranks disagree"):
        merge([Part({}, {}, (Share.of(0, ((2,), (1,)), 0, table),)), Part({}, {}, (wider,))])


def test_a_save_of_one_rank_lists_no_piece(tmp_path: Path) -> None:
    make(tmp_path).save(TrainState(1, 8, 64), FakeEngine())
    content = orjson.loads((tmp_path / "checkpoints/step-000000001" / MANIFEST).read_bytes())
    assert "pieces" not in str(content)
