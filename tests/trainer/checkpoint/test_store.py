"""The checkpoint format: what is written is read back under any layout, and no damaged byte goes unseen."""

import itertools
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from parallel.engine import Chunk
from stored import small_checkpoint, whole, write
from trainer.checkpoint import folder as folders
from trainer.checkpoint import store
from trainer.checkpoint.manifest import read_manifest


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


ALL_DTYPES = [
    torch.randn(3, 5),
    torch.randn(4).double(),
    torch.randn(2, 3).bfloat16(),
    torch.randn(7).half(),
    torch.randn(8).to(torch.float8_e4m3fn),
    torch.arange(5),
    torch.tensor([True, False, True]),
    torch.tensor(3.5),
    torch.randn(2, 3, 4, 5).transpose(1, 3),
    torch.arange(3, dtype=torch.int8),
    torch.zeros(0, 4),
]


def test_every_dtype_and_stride_comes_back_and_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    tensors = {f"t{i}": tensor for i, tensor in enumerate(ALL_DTYPES)}
    folder = write(tmp_path, [[whole(name, tensor) for name, tensor in tensors.items()]])
    manifest = folders.verify(folder)
    assert (manifest.step, manifest.sequences) == (1, 8)
    read = load_file(folder / "rank-00000.safetensors")
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        back = store.read_tensor(folder, name)
        assert back.dtype == tensor.dtype and back.shape == tensor.shape
        assert raw(back) == raw(tensor) == raw(read[name]), name


def test_header_is_aligned_and_every_tensor_starts_at_a_multiple_of_its_element_size(tmp_path: Path) -> None:
    folder = write(tmp_path, [[whole(f"t{i}", tensor) for i, tensor in enumerate(ALL_DTYPES)]])
    data = (folder / "rank-00000.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    assert length % 8 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        assert entry["data_offsets"][0] % store.DTYPES[entry["dtype"]].itemsize == 0, name


def test_large_states_are_split_over_files_and_large_tensors_over_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FILE_BYTES", 1000)
    monkeypatch.setattr(store, "SLICE_BYTES", 256)
    tensors = [torch.randn(50, 9), torch.randn(41, 3).t(), torch.randn(700), torch.randn(5, 200)]
    folder = write(tmp_path, [[whole(f"t{i}", tensor) for i, tensor in enumerate(tensors)]])
    assert len(list(folder.glob("*.safetensors"))) == store.WRITERS
    folders.verify(folder)
    for i, tensor in enumerate(tensors):
        assert torch.equal(store.read_tensor(folder, f"t{i}"), tensor)


def tiles(shape: tuple[int, ...], cuts: list[list[int]]) -> list[tuple[slice, ...]]:
    """The grid of blocks that the cuts (positions per dimension) make."""
    bounds = [
        [0, *sorted({c % (size + 1) for c in cut}), size] for size, cut in zip(shape, cuts, strict=True)
    ]
    spans = [[slice(a, b) for a, b in itertools.pairwise(bound) if a < b] for bound in bounds]
    return list(itertools.product(*spans))


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[slice, ...]], list[tuple[slice, ...]]]:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=0, max_size=3)))
    cut = st.lists(st.integers(0, 9), max_size=3)
    before, after = ([draw(cut) for _ in shape] for _ in range(2))
    return shape, tiles(shape, before), tiles(shape, after)


def spread(name: str, tensor: Tensor, blocks: list[tuple[slice, ...]], ranks: int) -> list[list[Chunk]]:
    """The tensor's blocks dealt to ranks; each tensor is a view, as a shard of live memory may be."""
    dealt: list[list[Chunk]] = [[] for _ in range(ranks)]
    for number, block in enumerate(blocks):
        offset = tuple(part.start for part in block)
        dealt[number % ranks].append(Chunk(name, tensor[block], tuple(tensor.shape), offset, True))
    return dealt


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=st.lists(tilings(), min_size=1, max_size=3), before=st.integers(1, 4), after=st.integers(1, 4))
def test_any_tiling_on_any_ranks_loads_into_any_other(
    tmp_path_factory: pytest.TempPathFactory, cases: list, before: int, after: int
) -> None:
    root = tmp_path_factory.mktemp("tilings")
    saved: list[list[Chunk]] = [[] for _ in range(before)]
    loaded: list[list[Chunk]] = [[] for _ in range(after)]
    pairs = []
    for number, (shape, old, new) in enumerate(cases):
        source = torch.randn(shape)
        target = torch.full(shape, float("nan"))
        for chunks, dealt in zip(saved, spread(f"t{number}", source, old, before), strict=True):
            chunks += dealt
        for chunks, dealt in zip(loaded, spread(f"t{number}", target, new, after), strict=True):
            chunks += dealt
        pairs.append((source, target))
    folder = write(root, saved)
    folders.verify(folder)
    for chunks in loaded:
        store.load(folder, chunks)
    assert all(torch.equal(source, target) for source, target in pairs)


def test_four_ranks_into_one_and_one_into_three_replicas_included(tmp_path: Path) -> None:
    source = torch.randn(10, 6)
    rows = [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    ranks = [[Chunk("w", source[r], (10, 6), (r.start, 0), True)] for r in rows]
    ranks[2].append(Chunk("w", source[0:3], (10, 6), (0, 0), False))  # a replica: not written a second time
    folder = write(tmp_path, ranks)
    one = torch.zeros(10, 6)
    store.load(folder, [whole("w", one)])
    assert torch.equal(one, source)
    again = write(tmp_path, [[whole("w", one)]], step=2)
    for columns in (slice(0, 2), slice(2, 4), slice(4, 6)):
        piece = torch.zeros(10, 2)
        store.load(again, [Chunk("w", piece, (10, 6), (0, columns.start), False)])
        assert torch.equal(piece, source[:, columns])


def test_what_the_tensors_are_must_match_exactly(tmp_path: Path) -> None:
    folder = write(tmp_path, [[whole("a", torch.ones(4, 2)), whole("b", torch.ones(3))]])
    untouched = torch.zeros(4, 2)
    for chunk, words in [
        (whole("c", torch.zeros(1)), "holds no tensor c"),
        (whole("b", torch.zeros(4)), r"tensor b is \[3\], this run has \[4\]"),
        (whole("b", torch.zeros(3).half()), "tensor b is F32, this run has F16"),
    ]:
        with pytest.raises(RuntimeError, match=words) as caught:
            store.load(folder, [whole("a", untouched), chunk])
        assert "\n" not in str(caught.value)
    assert not untouched.any(), "nothing is loaded where something does not fit"
    with pytest.raises(RuntimeError, match="holds tensor b, which this run has not"):
        store.check_no_extra(folder, read_manifest(folder), ["a"])
    with pytest.raises(RuntimeError, match="complex64 has no place"):
        write(tmp_path / "other", [[whole("z", torch.zeros(2, dtype=torch.complex64))]])


def test_only_the_overlap_is_read(tmp_path: Path) -> None:
    source = torch.randn(1000, 100)
    halves = [
        [Chunk("w", source[:500], (1000, 100), (0, 0), True)],
        [Chunk("w", source[500:], (1000, 100), (500, 0), True)],
    ]
    folder = write(tmp_path, halves)
    (folder / "rank-00001.safetensors").unlink()  # nobody asks for its half
    target = torch.zeros(10, 100)
    store.load(folder, [Chunk("w", target, (1000, 100), (20, 0), False)])
    assert torch.equal(target, source[20:30])


def test_loading_executes_nothing(tmp_path: Path) -> None:
    """Neither a pickle nor a safetensors file with a wild header does more than raise one line."""
    folder = write(tmp_path, [[whole("w", torch.ones(200))]])
    path = folder / "rank-00000.safetensors"
    size = path.stat().st_size
    evil = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "owned") + b"'\ntR."
    for content in (evil, struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"{}"):
        path.write_bytes(content.ljust(size, b"\0"))
        with pytest.raises(RuntimeError, match=r"not a safetensors file|not what the manifest says"):
            store.read_tensor(folder, "w")
    assert not (tmp_path / "owned").exists()


def test_safetensors_slices_are_the_pieces(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path)
    w1 = store.read_tensor(folder, "w1")
    for piece in read_manifest(folder).stored("w1"):
        with safe_open(folder / piece.files[0], framework="pt") as file:
            top = piece.offset[0]
            assert torch.equal(file.get_tensor(piece.key), w1[top : top + 6])
