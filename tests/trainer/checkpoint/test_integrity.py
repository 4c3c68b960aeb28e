"""Damage of every kind is found before a load, and nothing that would load as garbage is committed."""

import random
from pathlib import Path

import pytest
import torch

from parallel.engine import Chunk
from stored import small_checkpoint, whole, write
from trainer.checkpoint import folder as folders
from trainer.checkpoint import store
from trainer.checkpoint.manifest import MANIFEST, TensorEntry, read_manifest
from trainer.checkpoint.merge import Part, merge
from trainer.checkpoint.pieces.files import TABLE


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([[(0, 2)], [(3, 4)]], "hold 3 of 4 elements"),
        ([[(0, 2)], [(0, 2)]], "owned by exactly one rank"),
        ([[(0, 3)], [(2, 5)]], "leaves"),
    ],
)
def test_pieces_that_do_not_tile_their_tensor_are_never_committed(
    tmp_path: Path, ranks: list[list[tuple[int, int]]], words: str
) -> None:
    chunks = [[Chunk("w", torch.ones(b - a), (4,), (a,), True) for a, b in rank] for rank in ranks]
    with pytest.raises(RuntimeError, match=words):
        write(tmp_path, chunks)
    assert folders.steps(tmp_path) == []


def test_ranks_that_disagree_about_a_tensor_are_refused() -> None:
    def part(shape: tuple[int, ...]) -> Part:
        return Part({}, {"w": TensorEntry("F32", shape)})

    with pytest.raises(RuntimeError, match="tensor w: ranks disagree"):
        merge([part((2,)), part((3,))])


def test_a_step_is_never_overwritten(tmp_path: Path) -> None:
    folder = write(tmp_path, [[whole("w", torch.ones(2))]])
    with pytest.raises(RuntimeError, match="exists already and is never overwritten"):
        write(tmp_path, [[whole("w", torch.zeros(2))]])
    assert torch.equal(store.read_tensor(folder, "w"), torch.ones(2))


def test_200_of_200_single_bit_flips_are_found(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path)
    files = sorted(folder.iterdir())
    draw = random.Random(0)
    hit = set()
    for number in range(200):
        # Every file gets its share, and so do the bytes of each: header, numbers, manifest.
        path = files[number % len(files)]
        data = bytearray(path.read_bytes())
        at, bit = draw.randrange(len(data)), draw.randrange(8)
        data[at] ^= 1 << bit
        sound = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(RuntimeError, match="damaged") as caught:
            folders.verify(folder)
        assert "\n" not in str(caught.value)
        path.write_bytes(sound)
        hit.add(path.name)
    assert hit == {MANIFEST, TABLE, "rank-00000.safetensors", "rank-00001.safetensors"}
    folders.verify(folder)


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    folder = write(tmp_path, [[whole("w", torch.ones(2))]])
    sound = (folder / MANIFEST).read_bytes()
    for position in range(0, 8 * len(sound), 3):
        data = bytearray(sound)
        data[position // 8] ^= 1 << position % 8
        (folder / MANIFEST).write_bytes(data)
        with pytest.raises(RuntimeError):
            read_manifest(folder)


def test_torn_missing_and_swapped_files_are_found(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path)
    first, second = folder / "rank-00000.safetensors", folder / "rank-00001.safetensors"
    sound = first.read_bytes()
    for torn in (sound[:-1], sound[: len(sound) // 2], b"", sound + b"\0"):
        first.write_bytes(torn)
        with pytest.raises(RuntimeError, match=r"rank-00000.safetensors: \d+ bytes, \d+ were written"):
            folders.verify(folder)
    first.unlink()
    with pytest.raises(RuntimeError, match=r"rank-00000\.safetensors: missing"):
        folders.verify(folder)
    first.write_bytes(second.read_bytes())
    with pytest.raises(RuntimeError, match="damaged"):
        folders.verify(folder)
    first.write_bytes(sound)
    manifest = (folder / MANIFEST).read_bytes()
    for torn in (manifest[:-5], b"", b"null", b"[" * 100_000):
        (folder / MANIFEST).write_bytes(torn)
        with pytest.raises(RuntimeError, match="damaged"):
            folders.verify(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(RuntimeError, match="missing: not a whole checkpoint"):
        folders.verify(folder)


def test_another_format_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.manifest.VERSION", 4)
    folder = write(tmp_path, [[whole("w", torch.ones(2))]])
    monkeypatch.undo()
    said = "version 4; this program reads germinal-checkpoint versions 1 to 3"
    with pytest.raises(RuntimeError, match=said):
        folders.verify(folder)
