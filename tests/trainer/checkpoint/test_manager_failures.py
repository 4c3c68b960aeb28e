"""Every way that a save can fail: one error on every rank, and earlier checkpoints as they were."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from checkpointed import FakeEngine, Team, events, make, save
from trainer import run
from trainer.checkpoint import store
from trainer.record.sinks import JsonlLog
from trainer.state import TrainState
from whole_runs import make_corpus, train_here, write_config

# Failing to save.


def refuse_writes(monkeypatch: pytest.MonkeyPatch, rank: int, number: int = errno.ENOSPC) -> None:
    """The file system has no room for what `rank` writes."""
    write_all = store.write_all

    def write(fd: int, data: Any) -> None:
        if f"rank-{rank:05d}" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        write_all(fd, data)

    monkeypatch.setattr(store, "write_all", write)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_failed_writer_is_an_error_on_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: int, asynchronous: bool
) -> None:
    team = Team(4)

    def train(rank: int) -> None:
        checkpointer = make(tmp_path, rank, team, asynchronous=asynchronous)
        engine = FakeEngine(rank, 4)
        save(checkpointer, engine, 1)
        checkpointer.wait()
        team.gather(rank)(None)
        if rank == 0:
            refuse_writes(monkeypatch, victim)
        team.gather(rank)(None)
        save(checkpointer, engine, 2)
        checkpointer.close()

    errors = team.run(train)
    for rank, error in enumerate(errors):
        where = f" on rank {rank}" if rank == victim else f": rank {victim}"
        assert str(error) == (
            f"checkpoint of step 2 was not saved{where}: {tmp_path}: No space left on device: make room and "
            "run the same command again, or set run_dir to a folder on another disk"
        )
    told = events(tmp_path, "fault")[0]
    assert told["step"] == 2 and "repeats" not in told
    monkeypatch.undo()
    assert make(tmp_path).resume(FakeEngine()) == TrainState(1, 8, 64)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000000001"]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_diverged_says_that_the_failure_comes_again(tmp_path: Path, victim: int) -> None:
    """A supervisor reads it in the event that rank 0 writes. A full disk may have room again."""
    team = Team(3)

    def train(rank: int) -> None:
        checkpointer, engine = make(tmp_path, rank, team), FakeEngine(rank, 3)
        if rank == victim:
            engine.sharded["model.w"][1, 1] = float("nan")
        checkpointer.save(TrainState(1, 8, 64), engine)
        checkpointer.close()

    for error in team.run(train):
        assert "tensor model.w holds a NaN" in str(error)
    (told,) = events(tmp_path, "fault")
    assert told["repeats"] is True


def test_a_rank_that_never_answers_is_named(tmp_path: Path) -> None:
    team = Team(3)

    def train(rank: int) -> None:
        checkpointer = make(tmp_path, rank, team, patience_seconds=1)
        if rank != 1:
            save(checkpointer, FakeEngine(rank, 3), 1)

    first, silent, third = team.run(train)
    assert silent is None
    assert str(first) == (
        "checkpoint of step 1 was not saved:"
        " not all ranks wrote their part within 1 s (no part from ranks [1])"
    )
    assert str(third).startswith("checkpoint of step 1 was not saved: rank 0: not all ranks wrote")


def test_an_error_is_raised_once_and_a_bug_keeps_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*args: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setattr("trainer.checkpoint.saving.save.write_batches", buggy)
    checkpointer = make(tmp_path, asynchronous=True)
    save(checkpointer, FakeEngine(), 1)
    with pytest.raises(KeyError, match="a bug"):
        checkpointer.wait()
    checkpointer.close()


def test_a_run_folder_that_cannot_be_written_is_one_error_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    team = Team(2)
    errors = team.run(lambda rank: make(tmp_path, rank, team))
    assert all(isinstance(error, OSError | RuntimeError) for error in errors), errors
    assert "File exists" in str(errors[1]) and "checkpoints" in str(errors[1])


def test_logs_are_on_disk_before_the_checkpoint_and_files_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut asks for: every file, then the folder, then the rename, then the parent."""
    order: list[str] = []
    fsync, rename = os.fsync, os.rename
    log = JsonlLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1})

    def recorded(fd: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    checkpointer = make(tmp_path, logs=[log])
    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append("rename"), rename(a, b)))
    save(checkpointer, FakeEngine(), 1)
    renamed = order.index("rename")
    before = order[:renamed]
    files = {"rank-00000.safetensors", "state.json", "FILES.txt", "MANIFEST.json"}
    assert files | {"metrics.jsonl"} <= set(before)
    assert before[-1].startswith(".tmp-step-"), "the folder's own entries come last before the rename"
    assert order[renamed + 1] == "checkpoints"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_does_not_wait_for_a_rank_that_has_ended(tmp_path: Path, asynchronous: bool) -> None:
    """Nor is there an event of the save: the rank's end has one of its own."""
    team = Team(2)
    gone: list[str] = []

    def train(rank: int) -> None:
        checkpointer = make(
            tmp_path,
            rank,
            team,
            asynchronous=asynchronous,
            patience_seconds=600,
            gone=lambda: next(iter(gone), None),
        )
        if rank == 0:
            save(checkpointer, FakeEngine(rank, 2), 1) if asynchronous else None
            gone.append("rank 1 on n2 is gone without a word")
            save(checkpointer, FakeEngine(rank, 2), 1) if not asynchronous else checkpointer.wait()

    (error, _) = team.run(train)
    assert str(error) == "checkpoint of step 1 was not saved: rank 1 on n2 is gone without a word"
    assert not (tmp_path / "events.jsonl").exists() or not events(tmp_path, "fault")


@pytest.mark.parametrize(("given", "waits"), [(60, 1800), (7200, 7200)])
def test_a_save_waits_as_long_as_a_slow_file_system_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int, waits: int
) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path), supervise__first_seconds=given)
    asked: list[float] = []

    def checkpointer(*arguments: Any, patience_seconds: float, **more: Any) -> None:
        asked.append(patience_seconds)
        raise InterruptedError

    monkeypatch.setattr(run, "Checkpointer", checkpointer)
    with pytest.raises(InterruptedError):
        train_here(config)
    assert asked == [waits]
