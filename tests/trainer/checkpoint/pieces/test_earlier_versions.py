"""Checkpoints that earlier versions wrote are read as those of today, by the same reader."""

import itertools
import shutil
from math import prod
from pathlib import Path

import pytest
import torch

from parallel.engine import Chunk
from trainer.checkpoint import folder as folders
from trainer.checkpoint import store
from trainer.checkpoint.loading import load_and_prove
from trainer.checkpoint.manifest import MANIFEST, read_manifest
from trainer.checkpoint.pieces.files import DamagedError

GOLDEN = Path(__file__).parents[3] / "golden"


def every_byte_counts(at: Path) -> None:
    sound = (at / MANIFEST).read_bytes()
    for position in itertools.chain(range(0, len(sound), 97), range(len(sound) - 60, len(sound))):
        data = bytearray(sound)
        data[position] ^= 1
        (at / MANIFEST).write_bytes(data)
        with pytest.raises(RuntimeError):
            read_manifest(at)
    (at / MANIFEST).write_bytes(sound)


def test_a_checkpoint_of_version_1_is_read_and_every_byte_of_its_manifest_counts(tmp_path: Path) -> None:
    """Its pieces are listed one by one. A whole run goes on from it in `test_golden_run`."""
    shutil.unpack_archive(GOLDEN / "run-0.1.tar.gz", tmp_path)
    at = tmp_path / "run/checkpoints/step-000000004"
    assert b'"version": 1' in (at / MANIFEST).read_bytes()
    manifest = folders.verify(at)
    name, entry = max(manifest.tensors.items(), key=lambda item: len(item[1].pieces))
    assert len(entry.pieces) == 2, "two tensor-parallel ranks wrote it"
    whole = store.read_tensor(at, name)
    for stored in manifest.stored(name):
        part = torch.zeros(stored.shape)
        store.load(at, [Chunk(name, part, entry.shape, stored.offset, False)], manifest)
        assert torch.equal(
            part, whole[tuple(slice(o, o + n) for o, n in zip(stored.offset, stored.shape, strict=True))]
        )
    every_byte_counts(at)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_a_checkpoint_of_version_2_is_read(tmp_path: Path, ranks: int) -> None:
    """checkpoint-2.tar.gz was made by that version: tp 2 × 2 shards, of which rank 0 and 2 wrote two files.
    Element n of each tensor is n; `few` leaves a rank nothing, `flat` is cut as DeepSpeed does.
    """
    shutil.unpack_archive(GOLDEN / "checkpoint-2.tar.gz", tmp_path)
    at = tmp_path / "step-000000007"
    assert b'"version":2' in (at / MANIFEST).read_bytes()
    manifest = folders.verify(at)
    assert (manifest.step, manifest.sequences, len(manifest.files)) == (7, 56, 7)
    assert set(manifest.tensors) == {"columns", "few", "listed", "model.flat", "rows", "scalar"}
    shapes = {name: entry.shape for name, entry in manifest.tensors.items()}
    proven = []
    for rank in range(ranks):
        chunks = [Chunk(n, torch.zeros(s), s, (0,) * len(s), False) for n, s in shapes.items()]
        share = manifest.files.share_of(rank, ranks)
        load_and_prove(at, chunks, manifest, share)
        proven += share
        for chunk in chunks:
            assert torch.equal(chunk.tensor.flatten(), torch.arange(float(prod(chunk.shape)))), chunk.name
    assert sorted(proven) == sorted(manifest.files)
    every_byte_counts(at)
    path = at / "rank-00002-1.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=path.name):
        folders.verify(at)
