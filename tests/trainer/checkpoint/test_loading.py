"""Loading and proving in one pass: every byte once, and what is damaged is never trained on."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpointed import FakeEngine, Team, events, flip, make, save, tensors_of
from common.mapped_file import MappedFile
from parallel.engine import Chunk
from stored import whole, write
from trainer.checkpoint import folder as folders
from trainer.checkpoint import loading
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.newest import newest
from trainer.checkpoint.pieces.files import DamagedError
from trainer.state import TrainState


def saved(run: Path, world: int, steps: tuple[int, ...], **options: Any) -> None:
    team = Team(world)

    def train(rank: int) -> None:
        checkpointer, engine = make(run, rank, team, **options), FakeEngine(rank, world)
        for step in steps:
            save(checkpointer, engine, step)
        checkpointer.close()

    assert team.run(train) == [None] * world


def resumed(run: Path, world: int, **options: Any) -> list[Any]:
    """(state or None, value that the engine holds) of each rank."""
    team = Team(world)

    def resume(rank: int) -> tuple[TrainState | None, float]:
        engine = FakeEngine(rank, world, value=5.0)
        state = make(run, rank, team, **options).resume(engine)
        values = {float(v) for v in torch.cat([t.flatten() for t in engine.sharded.values()]).unique()}
        assert len(values) == 1, values
        return state, values.pop()

    return team.run(resume)


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (3, 4, 5)])
def test_blocks_smaller_than_a_row_fill_any_chunk(
    tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BLOCK_BYTES", 24)
    tensor = torch.randn(shape)
    folder = write(tmp_path, [[whole("w", tensor)]])
    manifest = read_manifest(folder)
    everything = torch.zeros(shape)
    chunks = [whole("w", everything)]
    inner = torch.zeros(tuple(max(1, n - 2) for n in shape))
    if shape:
        chunks.append(Chunk("w", inner, shape, (1,) * len(shape), False))
    loading.load_and_prove(folder, chunks, manifest, sorted(manifest.files))
    assert torch.equal(everything, tensor)
    if shape:
        assert torch.equal(inner, tensor[tuple(slice(1, 1 + n) for n in inner.shape)])


@pytest.mark.parametrize("world", [1, 3])
def test_a_resume_on_the_same_ranks_reads_every_byte_once(
    tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, world, (1, 2))
    read: dict[str, int] = {}
    preadv, hash_file = os.preadv, folders.hash_file

    def counted(fd: int, buffers: Any, at: int) -> int:
        got = preadv(fd, buffers, at)
        name = os.readlink(f"/proc/self/fd/{fd}")
        read[name] = read.get(name, 0) + got
        return got

    hashed: list[str] = []
    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(folders, "hash_file", lambda path: (hashed.append(path.name), hash_file(path))[1])
    mapped: list[str] = []
    monkeypatch.setattr(
        "trainer.checkpoint.reader.MappedFile", lambda path: (mapped.append(path.name), MappedFile(path))[1]
    )
    assert resumed(tmp_path, world) == [(TrainState(2, 16, 128), 2.0)] * world
    at = folders.step_folder(tmp_path / "checkpoints", 2)
    manifest = read_manifest(at)
    names = {name for name in manifest.files if name.endswith(".safetensors")}
    assert {name: read[str(at / name)] for name in names} == {n: manifest.files[n].bytes for n in names}
    assert set(hashed) == {"state.json"}, "a file of tensors was read apart"
    # All hold model.norm, which rank 0 wrote.
    assert sorted(mapped) == ["rank-00000.safetensors"] * (world - 1)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (1, 4), (4, 1)])
def test_on_other_ranks_all_files_are_proven_by_one_of_them(tmp_path: Path, before: int, after: int) -> None:
    saved(tmp_path, before, (1, 2))
    manifest = read_manifest(folders.step_folder(tmp_path / "checkpoints", 2))
    for shift in (0, 1):
        shares = [manifest.files.share_of(rank, after, shift=shift) for rank in range(after)]
        assert sorted(name for share in shares for name in share) == sorted(manifest.files)
    assert resumed(tmp_path, after) == [(TrainState(2, 16, 128), 2.0)] * after
    flip(tensors_of(tmp_path, 2).with_name(f"rank-{before - 1:05d}.safetensors"))
    assert resumed(tmp_path, after) == [(TrainState(1, 8, 64), 1.0)] * after
    assert "damaged" in events(tmp_path, "fault")[0]["reason"]


def test_damage_that_one_rank_reads_sends_all_to_the_older_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, 3, (1, 2, 3))
    flip(tensors_of(tmp_path, 3).with_name("rank-00001.safetensors"))
    at = tensors_of(tmp_path, 2).with_name("rank-00002.safetensors")
    at.write_bytes(at.read_bytes()[:-4])
    assert resumed(tmp_path, 3) == [(TrainState(1, 8, 64), 1.0)] * 3
    assert [event["set_aside"] for event in events(tmp_path, "fault")] == [
        "step-000000003.damaged-1",
        "step-000000002.damaged-1",
    ]


@pytest.mark.parametrize("name", ["MANIFEST.json", "FILES.txt", "state.json", "rank-00001.safetensors"])
def test_a_file_server_that_is_away_sets_no_checkpoint_aside(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing about the bytes: the start ends, and the next goes on from the newest checkpoint."""
    saved(tmp_path, 2, (1, 2))

    def away(path: Any) -> None:
        if Path(path).name == name:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    opened, read, hashed = os.open, Path.read_bytes, folders.hash_file
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda path, *given, **more: away(path) or opened(path, *given, **more))
        patch.setattr(Path, "read_bytes", lambda path: away(path) or read(path))
        patch.setattr(folders, "hash_file", lambda path: away(path) or hashed(path))
        for error in resumed(tmp_path, 2):
            assert type(error) is RuntimeError, "not damage"
            assert f"{name}: cannot be read: Stale file handle: the same command tries again" in str(error)
        with pytest.raises(RuntimeError, match="tries again"):  # nor does a command read an older one
            newest(tmp_path / "checkpoints")
    assert newest(tmp_path / "checkpoints").step == 2
    assert resumed(tmp_path, 2) == [(TrainState(2, 16, 128), 2.0)] * 2


def test_every_byte_of_a_file_counts_while_it_is_loaded(tmp_path: Path) -> None:
    folder = write(tmp_path, [[whole("w", torch.randn(4, 3)), whole("v", torch.randn(2).half())]])
    manifest = read_manifest(folder)
    path = folder / "rank-00000.safetensors"
    sound = path.read_bytes()
    for position in range(len(sound)):
        data = bytearray(sound)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        chunks = [whole("w", torch.zeros(4, 3)), whole("v", torch.zeros(2).half())]
        with pytest.raises(DamagedError):
            loading.load_and_prove(folder, chunks, manifest, [path.name])


def test_where_loading_spoilt_the_engine_and_no_older_one_verifies_the_start_ends(tmp_path: Path) -> None:
    """It is not trained on: the ranks end, with what is wrong, and everything stays as it is."""
    saved(tmp_path, 2, (1, 2))
    for step in (1, 2):
        flip(tensors_of(tmp_path, step))
    for error in resumed(tmp_path, 2):
        assert "no checkpoint of this run verifies" in str(error) and "step-000000002" in str(error)
    assert folders.steps(tmp_path / "checkpoints") == [2, 1]
