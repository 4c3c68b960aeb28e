"""Parts of a vector of tensors, as DeepSpeed's ZeRO-1 and 2 write: described by a rule, or refused."""

import re
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from torch import Tensor

from parallel.deepspeed_engine.master_slice import MasterSlice
from parallel.engine import Chunk
from stored import write
from trainer.checkpoint import folder as folders
from trainer.checkpoint import loading, store
from trainer.checkpoint.description import described
from trainer.checkpoint.manifest import MANIFEST, read_manifest
from trainer.checkpoint.merge import Part, merge
from trainer.checkpoint.pieces.cuts import Stretch

DOCUMENT = Path(__file__).parents[4] / "docs/checkpoints.md"
SHAPES = {"a": (5, 3, 2), "b": (4, 5), "c": (8,), "d": (), "e": (2, 31), "f": (3,)}  # 124 elements
Bounds = tuple[int, int]


def as_it_is(rank: int, name: str, bounds: Bounds, first: int) -> tuple[Bounds, int]:
    return bounds, first


def vectors(
    tensors: dict[str, Tensor],
    ranks: int,
    fault: Callable[[int, str, Bounds, int], tuple[Bounds, int]] = as_it_is,
    padded: int = 2,
) -> list[list[Chunk]]:
    """The chunks of each of so many ranks of DeepSpeed's ZeRO-1 and 2, with a moment of each parameter.

    fault: (rank, name, bounds of its slice, first) → those that it describes.
    padded: the vector has a multiple of so many elements a rank.
    """
    elements = sum(tensor.numel() for tensor in tensors.values())
    each = -(-elements // (ranks * padded)) * padded
    found: list[list[Chunk]] = []
    for rank in range(ranks):
        found.append([])
        first = 0
        for name, tensor in tensors.items():
            start, length = Stretch(first, each).part(rank, tensor.numel())
            (start, length), told = fault(rank, name, (start, length), first)
            first += tensor.numel()
            if length:
                mine = tensor.flatten()[start : start + length]
                shape = tuple(tensor.shape)
                master = MasterSlice(
                    name, shape, start, mine, {"m": -mine}, True, cuts=((ranks,),), stretch=(told, each)
                )
                found[-1] += master.chunks()
    return found


def random_tensors() -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40, 130])
def test_a_vector_is_described_by_its_cut_and_loads_into_any_other(tmp_path: Path, ranks: int) -> None:
    """By 40 ranks a part has 4 elements; by 130 the last ranks have none."""
    tensors = random_tensors()
    folder = write(tmp_path, vectors(tensors, ranks))
    folders.verify(folder)
    content = orjson.loads((folder / MANIFEST).read_bytes())
    assert len(content["cuts"]) == 1 and "pieces" not in str(content["tensors"])
    assert content["cuts"][0]["parts"] == [[ranks]] and content["cuts"][0].get("ranks") is None
    for name, tensor in tensors.items():
        assert torch.equal(store.read_tensor(folder, f"model.{name}"), tensor)
        assert torch.equal(store.read_tensor(folder, f"optim.m.{name}"), -tensor)
    manifest = read_manifest(folder)
    for others in (1, 5, 64):
        for rank, chunks in enumerate(vectors(tensors, others, padded=1)):
            empty = [replace(chunk, tensor=torch.zeros_like(chunk.tensor)) for chunk in chunks]
            loading.load_and_prove(folder, empty, manifest, manifest.files.share_of(rank, others))
            assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(empty, chunks, strict=True))


def test_the_documents_program_and_its_table_of_keys_hold(tmp_path: Path) -> None:
    tensors = random_tensors()
    folder = write(tmp_path, vectors(tensors, 7))
    text = DOCUMENT.read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    found = names["read_checkpoint"](folder)
    assert all((found[f"model.{name}"] == tensor.numpy()).all() for name, tensor in tensors.items())
    content = orjson.loads((folder / MANIFEST).read_bytes())
    assert {"each"} < content["cuts"][0].keys() and {"first"} < content["tensors"]["model.a"].keys()
    for key in (*content["cuts"][0], *content["tensors"]["model.a"]):
        assert re.search(rf"`(\w+\[\])?\.?{key}`", text), key


def test_two_vectors_of_parts_of_one_size_or_of_two_are_told_apart(tmp_path: Path) -> None:
    """DeepSpeed makes a vector of each group of parameters."""
    one, like, short = ({f"{n}{key}": t for n, t in random_tensors().items()} for key in "123")
    del short["e3"]
    by_vector = [vectors(each, 3) for each in (one, like, short)]
    ranks = [[chunk for chunks in of for chunk in chunks] for of in zip(*by_vector, strict=True)]
    folder = write(tmp_path, ranks)
    assert len(orjson.loads((folder / MANIFEST).read_bytes())["cuts"]) == 2
    for name, tensor in (one | like | short).items():
        assert torch.equal(store.read_tensor(folder, f"model.{name}"), tensor)


def first_off_everywhere(rank: int, name: str, bounds: Bounds, first: int) -> tuple[Bounds, int]:
    return bounds, first + 1


def first_off_on_a_rank(rank: int, name: str, bounds: Bounds, first: int) -> tuple[Bounds, int]:
    return bounds, first + (rank == 1)


def far_off_on_a_rank(rank: int, name: str, bounds: Bounds, first: int) -> tuple[Bounds, int]:
    return bounds, first + 42 * (rank == 1)


def one_more(rank: int, name: str, bounds: Bounds, first: int) -> tuple[Bounds, int]:
    start, length = bounds
    return (start, length + (rank == 0 and 0 < start + length < prod(SHAPES[name]))), first


def one_less(rank: int, name: str, bounds: Bounds, first: int) -> tuple[Bounds, int]:
    start, length = bounds
    return (start, length - (rank == 0 and start + length < prod(SHAPES[name]) and length > 0)), first


def one_further(rank: int, name: str, bounds: Bounds, first: int) -> tuple[Bounds, int]:
    start, length = bounds
    return (start + (rank == 0 and 0 < start + length < prod(SHAPES[name])), length), first


def test_a_first_that_is_wrong_on_every_rank_lists_pieces_and_loads(tmp_path: Path) -> None:
    """No piece that a part's bounds cut is then the one of its number."""
    tensors = random_tensors()
    folder = write(tmp_path, vectors(tensors, 3, first_off_everywhere))
    assert read_manifest(folder).tensors["model.b"].pieces
    for name, tensor in tensors.items():
        assert torch.equal(store.read_tensor(folder, f"model.{name}"), tensor)


@pytest.mark.parametrize("fault", [first_off_on_a_rank, far_off_on_a_rank, one_more, one_less, one_further])
def test_ranks_that_disagree_overlap_or_leave_an_element_are_refused(
    tmp_path: Path, fault: Callable[[int, str, Bounds, int], tuple[Bounds, int]]
) -> None:
    with pytest.raises(RuntimeError, match=r"tensor (model|optim\.m)\.\w: .*(disagree|owned)"):
        write(tmp_path, vectors(random_tensors(), 3, fault))


def parts_of(ranks: int) -> list[Part]:
    chunks = vectors(random_tensors(), ranks)
    return [described(rank, ["f"], [mine], {}) for rank, mine in enumerate(chunks)]


def with_row(part: Part, **changes: Any) -> Part:
    """The part with another dtype, shape, first, rank, number or each of its first tensor's vector."""
    (share,) = part.vectors
    name, dtype, shape, first = share.table[0]
    row = name, changes.pop("dtype", dtype), changes.pop("shape", shape), changes.pop("first", first)
    return replace(part, vectors=(replace(share, table=(row, *share.table[1:]), **changes),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "BF16"}, "disagree"),
        ({"shape": (5, 3, 3)}, "disagree"),
        ({"first": 1}, "disagree"),
        ({"each": 40}, "disagree"),
        ({"number": 0}, "part 0 of its vector was written by ranks 0 and 1"),
        ({"number": 2}, "part 2 of its vector was written by ranks 1 and 2"),
    ],
)
def test_notes_that_do_not_agree_are_refused(changes: dict[str, Any], message: str) -> None:
    parts = parts_of(8)  # of 16 elements: the first tensor, of 30, is in parts 0 and 1
    assert merge(parts)[1]["model.a"].first == 0
    with pytest.raises(RuntimeError, match=message):
        merge([parts[0], with_row(parts[1], **changes), *parts[2:]])


@pytest.mark.parametrize("gone", [0, 1, 3, 7])
def test_a_part_that_no_rank_wrote_is_refused(gone: int) -> None:
    parts = parts_of(8)
    with pytest.raises(RuntimeError, match=r"tensor .* pieces were written, of parts .*: every element"):
        merge(parts[:gone] + parts[gone + 1 :])


def test_a_tensor_that_leaves_its_vector_or_is_there_twice_is_refused() -> None:
    (part,) = parts_of(1)
    for first, number in ((-1, 0), (100, 0), (-124, -1), (124, 1)):
        with pytest.raises(
            RuntimeError, match=r"tensor model\.a: it lies in parts .* of a vector of 1 parts"
        ):
            merge([with_row(part, first=first, number=number)])
    (share,) = part.vectors
    with pytest.raises(RuntimeError, match=r"tensor model\.a: .* 2 pieces were written, of parts 0 to 0"):
        merge([replace(part, vectors=(share, replace(share, table=share.table[:1])))])
    listed = described(1, ["f"], [[replace(vectors(random_tensors(), 1)[0][0], stretch=None, cuts=())]], {})
    with pytest.raises(RuntimeError, match=r"tensor model\.a: ranks disagree about how it is cut"):
        merge([part, listed])
