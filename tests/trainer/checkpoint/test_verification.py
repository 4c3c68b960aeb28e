"""Committed checkpoints are read again by all ranks: shared, remembered, and never in the way of a save."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from checkpointed import FakeEngine, Team, events, flip, make, save, tensors_of
from trainer.checkpoint import folder as folders
from trainer.checkpoint.pieces.files import TABLE, digest
from trainer.checkpoint.saving import attempt
from trainer.checkpoint.saving import save as save_of_a_rank
from trainer.checkpoint.saving.attempt import longest_pause
from trainer.checkpoint.saving.board import FolderBoard
from trainer.checkpoint.saving.retention import RECORD
from trainer.state import TrainState


class Reads:
    """Which rank of a team, by its thread, read which file whole."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.by_step: dict[str, list[str]] = {}
        check = folders.check_file

        def counted(at: Path, name: str, entry: Any) -> None:
            self.by_step.setdefault(at.name, []).append(name)
            check(at, name, entry)

        patch.setattr(folders, "check_file", counted)


def train(run: Path, world: int, steps: range, **options: Any) -> None:
    team = Team(world)

    def one(rank: int) -> None:
        checkpointer, engine = make(run, rank, team, **options), FakeEngine(rank, world)
        checkpointer.resume(engine)
        for step in steps:
            save(checkpointer, engine, step, is_last=step == steps[-1])
        checkpointer.close()

    assert team.run(one) == [None] * world


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_file_is_read_again_once_and_after_a_restart_not_at_all(
    tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    train(tmp_path, world, range(1, 4), keep=2)
    assert folders.steps(tmp_path / "checkpoints") == [3, 2]
    files = {f"rank-{rank:05d}.safetensors" for rank in range(world)} | {"state.json", TABLE}
    for step in (1, 2, 3):
        assert sorted(reads.by_step[f"step-{step:09d}"]) == sorted(files)
    reads.by_step.clear()
    train(tmp_path, world, range(4, 5), keep=2)
    assert folders.steps(tmp_path / "checkpoints") == [4, 3]
    again = {step: [name for name in names if name != "state.json"] for step, names in reads.by_step.items()}
    assert not again.get("step-000000002") and not again.get("step-000000003"), "known to have verified"
    assert sorted(again["step-000000004"]) == sorted(files - {"state.json"})


def test_no_rank_reads_what_it_wrote() -> None:

    from trainer.checkpoint.pieces.files import FileEntry, Listed

    for world in (2, 3, 8, 9):
        files = {f"rank-{r:05d}{k}.safetensors": FileEntry(1, "") for r in range(world) for k in ("", "-1")}
        listed = Listed({**files, "state.json": FileEntry(1, "")})
        shares = [listed.share_of(rank, world, shift=world // 2) for rank in range(world)]
        assert sorted(name for share in shares for name in share) == sorted(listed)
        for rank, share in enumerate(shares):
            assert not any(name.startswith(f"rank-{rank:05d}") for name in share)
            assert len(share) <= 3


def test_a_save_does_not_wait_for_the_verification_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is another begun meanwhile; and nothing is deleted before it is done."""
    gate, check = threading.Event(), folders.check_file
    monkeypatch.setattr(folders, "check_file", lambda *given: (gate.wait(30), check(*given)))
    checkpointer, engine = make(tmp_path, keep=1, asynchronous=True), FakeEngine()
    for step in (1, 2, 3):
        save(checkpointer, engine, step)
        checkpointer.wait()
    assert folders.steps(checkpointer.root) == [3, 2, 1]
    gate.set()
    checkpointer.settle()
    save(checkpointer, engine, 4)
    checkpointer.close()
    assert folders.steps(checkpointer.root) == [4]


@pytest.mark.parametrize("world", [1, 2])
def test_the_last_save_has_the_rest_verified_behind_what_is_under_way(
    tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends with the checkpoints that are to be kept, however long the one before the last was read."""
    check = folders.check_file
    monkeypatch.setattr(folders, "check_file", lambda *given: (threading.Event().wait(0.3), check(*given)))
    train(tmp_path, world, range(1, 4), keep=1, asynchronous=True)
    assert folders.steps(tmp_path / "checkpoints") == [3]


@pytest.mark.parametrize("world", [1, 2])
def test_the_last_save_does_not_wait_for_it_either(
    tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watchdog would take a save for a hang that lasts as long as the reading of another checkpoint."""
    gate, saved, check = threading.Event(), threading.Barrier(world, timeout=20), folders.check_file
    read: list[str] = []

    def slow(at: Path, name: str, entry: Any) -> None:
        gate.wait(20)
        read.append(name)
        check(at, name, entry)

    monkeypatch.setattr(folders, "check_file", slow)
    team = Team(world)

    def one(rank: int) -> None:
        checkpointer, engine = make(tmp_path, rank, team, keep=1, asynchronous=True), FakeEngine(rank, world)
        for step in (1, 2):
            save(checkpointer, engine, step, is_last=step == 2)
            checkpointer.wait()
        assert not read
        saved.wait()
        gate.set()
        checkpointer.close()

    assert team.run(one) == [None] * world
    assert folders.steps(tmp_path / "checkpoints") == [2]


@pytest.mark.parametrize("world", [2, 3])
def test_the_verdict_names_the_steps_however_late_it_is(
    tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is there before the verdict: a rank that sees it must not take that for the verdict."""
    commit = attempt.commit

    def slow(*given: Any, **options: Any) -> None:
        commit(*given, **options)
        threading.Event().wait(0.3)

    monkeypatch.setattr(attempt, "commit", slow)
    train(tmp_path, world, range(1, 4), keep=1, patience_seconds=5)
    assert folders.steps(tmp_path / "checkpoints") == [3]


def test_damage_that_another_rank_finds_is_told_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = attempt.commit

    def spoilt(tmp: Path, final: Path, *given: Any, **options: Any) -> None:
        commit(tmp, final, *given, **options)
        if options["step"] == 3:
            flip(final / "rank-00001.safetensors")

    monkeypatch.setattr(attempt, "commit", spoilt)
    train(tmp_path, 3, range(1, 5), keep=2)
    assert folders.steps(tmp_path / "checkpoints") == [4, 3, 2]
    (told,) = events(tmp_path, "fault")
    assert told["step"] == 3 and "not counted among the 2 to keep" in told["reason"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_file_server_that_is_away_says_nothing_about_a_checkpoint(
    tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rank asked: the checkpoint is verified at a later save, and counts."""
    hashed, away = folders.hash_file, [f"rank-{rank:05d}.safetensors"]

    def answered(path: Path) -> str:
        if path.parent.name == "step-000000003" and path.name in away:
            away.remove(path.name)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return hashed(path)

    monkeypatch.setattr(folders, "hash_file", answered)
    train(tmp_path, 2, range(1, 5), keep=2)
    assert not away and not events(tmp_path, "fault")
    assert folders.steps(tmp_path / "checkpoints") == [4, 3]
    known = orjson.loads((tmp_path / "checkpoints" / RECORD).read_bytes())["verified"]
    assert {"3", "4"} <= known.keys()


@pytest.mark.parametrize("change", ["files", "record", "keys", "unreadable"])
def test_a_record_is_trusted_only_for_files_as_they_were_and_never_for_loading(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, 2, range(1, 3), keep=2)
    root = tmp_path / "checkpoints"
    known = orjson.loads((root / RECORD).read_bytes())["verified"]
    assert sorted(known) == ["1", "2"] and known["2"]["by"] == "2 ranks"
    if change == "files":
        os.utime(tensors_of(tmp_path, 1))
    elif change == "record":
        (root / RECORD).write_bytes((root / RECORD).read_bytes().replace(b'"by": "2 r', b'"by": "3 r'))
    elif change == "keys":  # as another version may write them
        content: dict[str, Any] = {"verified": {"1": {"mark": "1"}, "2": {"mark": "2"}}}
        content["xxh3_128"] = digest(orjson.dumps(content))
        (root / RECORD).write_bytes(orjson.dumps(content))
    else:
        (root / RECORD).write_bytes(b"{")
    reads = Reads(monkeypatch)
    train(tmp_path, 2, range(3, 4), keep=3)
    assert len(reads.by_step["step-000000001"]) == 4, "it was read again"
    # Bytes that changed under an unchanged stamp are found by whoever loads them.
    stamp = "trainer.checkpoint.saving.retention.Retention.stamp"
    monkeypatch.setattr(stamp, lambda self, step: known["2"]["stamp"])
    flip(tensors_of(tmp_path, 3))
    engine = FakeEngine()
    assert make(tmp_path, keep=3).resume(engine) == TrainState(2, 16, 128)
    assert engine.holds(2)


def test_all_ranks_together_look_a_bounded_number_of_times_a_second() -> None:
    for world in (1, 8, 64, 256, 1024, 2000):
        assert world / longest_pause(world) <= 1000
    assert longest_pause(16_384) == 2.0, "nor does a commit go unnoticed for long"


def test_a_rank_that_waits_looks_at_the_fence_less_often_than_for_its_note(tmp_path: Path) -> None:
    calls = {"guard": 0, "look": 0}

    class Empty(FolderBoard):
        def read(self, key: str) -> None:
            calls["look"] += 1

    def guard() -> None:
        calls["guard"] += 1

    board = Empty(tmp_path / "notes")
    one = attempt.Attempt(tmp_path, 1, "n", rank=5, world=1024, patience=0.2, board=board, guard=guard)
    with pytest.raises(RuntimeError, match="rank 0 did not commit"):
        one.finish(8)
    assert calls["guard"] == 1 < calls["look"]
    assert all(world / attempt.guard_pause(world) <= 100 for world in (10, 64, 1024, 16_384))


def test_another_rank_lists_no_folder_and_looks_for_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: set[int] = set()
    looks: set[int] = set()
    listdir, of_thread = os.listdir, threading.local()
    write_batches = save_of_a_rank.write_batches

    def writes(at: Path, rank: int, batches: Any) -> Any:
        of_thread.rank = rank
        return write_batches(at, rank, batches)

    def counted(path: Any) -> list[str]:
        listed.add(getattr(of_thread, "rank", 0))  # only rank 0 looks for notes in another thread
        return listdir(path)

    read = FolderBoard.read
    monkeypatch.setattr(save_of_a_rank, "write_batches", writes)
    monkeypatch.setattr("trainer.checkpoint.saving.board.os.listdir", counted)
    monkeypatch.setattr(
        FolderBoard, "read", lambda self, key: (looks.add(getattr(of_thread, "rank", 0)), read(self, key))[1]
    )
    train(tmp_path, 4, range(1, 4), keep=2)
    assert listed == {0} < looks <= {0, 1, 2, 3}
    assert listdir(tmp_path / "checkpoints") and not [
        name for name in listdir(tmp_path / "checkpoints") if name.startswith(".tmp")
    ], "the notes are taken down at the end"
