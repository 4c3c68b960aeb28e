"""Saving, keeping and resuming: many ranks through one folder, and every way that a save or a folder can go
wrong.
"""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.engine import Chunk
from trainer.checkpoint import folder as folders
from trainer.checkpoint import store
from trainer.checkpoint.manager import Checkpointer
from trainer.metrics.events import EventLog
from trainer.metrics.sinks import JsonlLog
from trainer.state import Identity, TrainState

ROWS = 12


class FakeEngine:
    """Rank `rank` of `world` holds its rows of two tensors, and all of a replicated one that rank 0 owns."""

    def __init__(self, rank: int = 0, world: int = 1, value: float = 0.0) -> None:
        self.rows = slice(ROWS * rank // world, ROWS * (rank + 1) // world)
        size = self.rows.stop - self.rows.start
        self.sharded = {name: torch.full((size, 5), value) for name in ("model.w", "optim.exp_avg.w")}
        self.norm = torch.full((7,), value)
        self.rank = rank
        self.updates = 0

    def chunks(self) -> list[Chunk]:
        sharded = [
            Chunk(name, tensor, (ROWS, 5), (self.rows.start, 0), True)
            for name, tensor in self.sharded.items()
        ]
        return [*sharded, Chunk("model.norm", self.norm, (7,), (0,), self.rank == 0)]

    def scalars(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load(self, scalars: dict[str, Any]) -> None:
        self.updates = scalars["updates"]

    def set(self, value: float) -> None:
        for tensor in (*self.sharded.values(), self.norm):
            tensor.fill_(value)
        self.updates = int(value)

    def holds(self, value: float) -> bool:
        tensors = (*self.sharded.values(), self.norm)
        return self.updates == int(value) and all(bool((tensor == value).all()) for tensor in tensors)


class Team:
    """`world` ranks as threads of this process, with a gather among them."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._barrier = threading.Barrier(world, timeout=20)
        self._slots: list[Any] = [None] * world

    def gather(self, rank: int) -> Callable[[Any], list[Any]]:
        def collect(value: Any) -> list[Any]:
            self._slots[rank] = json.loads(json.dumps(value))
            self._barrier.wait()
            out = list(self._slots)
            self._barrier.wait()
            return out

        return collect

    def run(self, action: Callable[[int], Any]) -> list[Any]:
        """Each rank's result, or the exception it raised."""

        def guarded(rank: int) -> Any:
            try:
                return action(rank)
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(guarded, range(self.world)))


def make(
    run_dir: Path, rank: int = 0, team: Team | None = None, identity: Identity | None = None, **options: Any
) -> Checkpointer:
    ranks: dict[str, Any] = {"rank": rank, "world": team.world, "gather": team.gather(rank)} if team else {}
    settings: dict[str, Any] = {"every": 1, "keep": 0, "asynchronous": False, "patience_seconds": 20}
    settings["identity"] = lambda position: identity or Identity()
    events = EventLog(run_dir / "events.jsonl" if rank == 0 else None)
    return Checkpointer(run_dir, **{**settings, "events": events, **ranks, **options})


def save(checkpointer: Checkpointer, engine: FakeEngine, step: int) -> None:
    engine.set(step)
    checkpointer.save(TrainState(step, 8 * step, 64 * step), engine)


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def tensors_of(run_dir: Path, step: int) -> Path:
    return folders.step_folder(run_dir / "checkpoints", step) / "rank-00000.safetensors"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path: Path, asynchronous: bool) -> None:
    checkpointer, engine = make(tmp_path, asynchronous=asynchronous), FakeEngine()
    assert checkpointer.resume(engine) is None
    for step in (2, 10, 9):  # newest is the highest step, not the latest clock
        save(checkpointer, engine, step)
    checkpointer.close()
    fresh = FakeEngine()
    assert make(tmp_path).resume(fresh) == TrainState(10, 80, 640)
    assert fresh.holds(10)
    assert [event["step"] for event in events(tmp_path, "save")] == [2, 10, 9]
    assert events(tmp_path, "resume")[0]["step"] == 10


def test_an_asynchronous_save_holds_the_values_of_its_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    write_part = store.write_part

    def slow(*args: Any) -> Any:
        gate.wait(10)
        return write_part(*args)

    monkeypatch.setattr("trainer.checkpoint.manager.write_part", slow)
    checkpointer, engine = make(tmp_path, asynchronous=True), FakeEngine()
    save(checkpointer, engine, 1)
    engine.set(77)  # training goes on
    assert folders.steps(checkpointer.root) == []
    threading.Timer(0.2, gate.set).start()
    begin = time.monotonic()
    save(checkpointer, engine, 2)  # one in flight: this one waits
    assert time.monotonic() - begin > 0.15
    checkpointer.close()
    assert folders.steps(checkpointer.root) == [2, 1]
    at = folders.step_folder(checkpointer.root, 1)
    assert bool((store.read_tensor(at, "model.w") == 1).all())


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 3), (3, 4)])
def test_saved_by_so_many_ranks_and_resumed_by_others(
    tmp_path: Path, before: int, after: int, asynchronous: bool
) -> None:
    team = Team(before)

    def train(rank: int) -> None:
        checkpointer = make(tmp_path, rank, team, asynchronous=asynchronous)
        engine = FakeEngine(rank, before)
        for step in (1, 2):
            save(checkpointer, engine, step)
        checkpointer.close()

    assert team.run(train) == [None] * before
    names = sorted(path.name for path in folders.step_folder(tmp_path / "checkpoints", 2).iterdir())
    assert names == ["MANIFEST.json", *(f"rank-{r:05d}.safetensors" for r in range(before)), "state.json"]
    team = Team(after)

    def resume(rank: int) -> bool:
        engine = FakeEngine(rank, after)
        state = make(tmp_path, rank, team).resume(engine)
        return state == TrainState(2, 16, 128) and engine.holds(2)

    assert team.run(resume) == [True] * after


def test_the_same_step_twice_is_one_checkpoint_and_another_runs_is_refused(tmp_path: Path) -> None:
    checkpointer, engine = make(tmp_path), FakeEngine()
    save(checkpointer, engine, 1)
    save(checkpointer, engine, 1)
    assert len(events(tmp_path, "save")) == 1
    with pytest.raises(RuntimeError, match="exists already and is never overwritten"):
        save(make(tmp_path), engine, 1)


def test_due() -> None:
    checkpointer = object.__new__(Checkpointer)
    checkpointer.every = 5
    assert [step for step in range(1, 12) if checkpointer.due(step)] == [5, 10]
    checkpointer.every = 0
    assert not checkpointer.due(5)


# Damage.


def test_a_damaged_checkpoint_is_passed_over_set_aside_and_saved_anew(tmp_path: Path) -> None:
    checkpointer, engine = make(tmp_path), FakeEngine()
    for step in (1, 2, 3):
        save(checkpointer, engine, step)
    flip(tensors_of(tmp_path, 3))
    (tensors_of(tmp_path, 2).parent / "state.json").unlink()
    again, engine = make(tmp_path), FakeEngine()
    assert again.resume(engine) == TrainState(1, 8, 64)
    assert engine.holds(1)
    third, second = events(tmp_path, "fault")
    assert third["step"] == 3 and "rank-00000.safetensors: damaged" in third["reason"]
    assert second["step"] == 2 and "state.json: missing; went on from step 1" in second["reason"]
    assert third["set_aside"] == "step-000000003.damaged-1"
    for step in (2, 3):
        save(again, engine, step)
    assert make(tmp_path).resume(FakeEngine()) == TrainState(3, 24, 192)


def test_where_nothing_verifies_the_run_starts_anew_and_says_so(tmp_path: Path) -> None:
    save(make(tmp_path), FakeEngine(), 1)
    flip(tensors_of(tmp_path, 1))
    engine = FakeEngine(value=5)
    assert make(tmp_path).resume(engine) is None
    assert engine.sharded["model.w"].eq(5).all(), "what does not verify is never loaded"
    assert "none older verifies: started anew" in events(tmp_path, "fault")[0]["reason"]


def test_ranks_share_the_verification_and_its_verdict(tmp_path: Path) -> None:
    team = Team(3)

    def train(rank: int) -> None:
        checkpointer = make(tmp_path, rank, team)
        for step in (1, 2):
            save(checkpointer, FakeEngine(rank, 3), step)

    team.run(train)
    for name in ("rank-00002.safetensors", "state.json"):
        flip(tensors_of(tmp_path, 2).parent / name)

    def resume(rank: int) -> TrainState | None:
        return make(tmp_path, rank, team).resume(FakeEngine(rank, 3))

    assert team.run(resume) == [TrainState(1, 8, 64)] * 3


def test_leftovers_of_dead_attempts_are_removed_at_the_start(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    (root / ".tmp-step-000000004-dead").mkdir(parents=True)
    (root / ".tmp-step-000000004-dead" / "rank-00000.safetensors").write_bytes(b"half")
    (root / ".tmp-delete-step-000000001").mkdir()
    (root / "notes").mkdir()
    checkpointer = make(tmp_path)
    assert [entry.name for entry in root.iterdir()] == ["notes"]
    assert ".tmp-step-000000004-dead" in events(tmp_path, "clean")[0]["reason"]
    save(checkpointer, FakeEngine(), 4)
    assert folders.steps(root) == [4]


# Another run.


@pytest.mark.parametrize(
    ("identity", "kind", "words"),
    [
        (
            Identity("dddd", 0, {"hidden": 8, "layers": 2}),
            RuntimeError,
            "corpus changed since checkpoint .*step-0+1",
        ),
        (Identity("cccc", 1, {"hidden": 8, "layers": 2}), ValueError, "seed is 1, but .* was saved with 0"),
        (Identity("cccc", 0, {"hidden": 16, "layers": 2}), ValueError, r"model.hidden is 16, but .* with 8"),
        (Identity("cccc", 0, {"layers": 2}), ValueError, r"model.hidden is None, but .* with 8"),
        (
            Identity("dddd", 0, {"hidden": 8, "layers": 2}, {"optim.name": "muon"}),
            ValueError,
            r"optim.name is 'muon', but .* with 'adamw'",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_every_rank(
    tmp_path: Path, identity: Identity, kind: type[Exception], words: str
) -> None:
    kept = {"optim.name": "adamw", "optim.lr": 1e-3, "train.steps": 10}
    first = Identity("cccc", 0, {"hidden": 8, "layers": 2}, kept)
    save(make(tmp_path, identity=first), FakeEngine(), 1)
    team = Team(2)
    for error in team.run(
        lambda rank: make(tmp_path, rank, team, identity=identity).resume(FakeEngine(rank, 2))
    ):
        with pytest.raises(kind, match=words):
            raise error
        assert "\n" not in str(error)
    same = Identity("cccc", 0, {"hidden": 8, "layers": 2}, kept)
    assert make(tmp_path, identity=same).resume(FakeEngine()) is not None
    assert "changed" not in events(tmp_path, "resume")[-1]
    faster = Identity("cccc", 0, {"hidden": 8, "layers": 2}, kept | {"optim.lr": 2e-3, "data.new": 1})
    assert make(tmp_path, identity=faster).resume(FakeEngine()) is not None
    told = events(tmp_path, "resume")[-1]
    assert told["changed"] == ["optim.lr 0.001 → 0.002"] and "optim.lr 0.001 → 0.002" in told["reason"]


def test_a_tensor_missing_on_one_rank_or_left_over_is_an_error_on_all(tmp_path: Path) -> None:
    save(make(tmp_path), FakeEngine(), 1)

    class More(FakeEngine):
        def chunks(self) -> list[Chunk]:
            extra = [Chunk("model.bias", torch.zeros(2), (2,), (0,), True)] if self.rank == 1 else []
            return super().chunks() + extra

    class Fewer(FakeEngine):
        def chunks(self) -> list[Chunk]:
            return [chunk for chunk in super().chunks() if chunk.name != "optim.exp_avg.w"]

    team = Team(2)
    errors = team.run(lambda rank: make(tmp_path, rank, team).resume(More(rank, 2)))
    assert all("holds no tensor model.bias" in str(error) for error in errors), errors
    assert str(errors[0]).startswith("rank 1: ")
    errors = team.run(lambda rank: make(tmp_path, rank, team).resume(Fewer(rank, 2)))
    assert all("holds tensor optim.exp_avg.w, which this run has not" in str(error) for error in errors), (
        errors
    )


# Keeping.


def test_keeps_the_newest_that_verify(tmp_path: Path) -> None:
    checkpointer, engine = make(tmp_path, keep=2, asynchronous=True), FakeEngine()
    for step in range(1, 5):
        save(checkpointer, engine, step)
    checkpointer.wait()
    assert folders.steps(checkpointer.root) == [4, 3]
    flip(tensors_of(tmp_path, 4))  # does not count any more
    save(checkpointer, engine, 5)
    checkpointer.wait()
    assert folders.steps(checkpointer.root) == [5, 4, 3]
    assert "not counted among the 2 to keep" in events(tmp_path, "fault")[0]["reason"]
    assert not [name for name in os.listdir(checkpointer.root) if name.startswith(".tmp")]


def test_a_checkpoint_that_counted_once_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    verify = folders.verify
    monkeypatch.setattr(folders, "verify", lambda at, **share: (read.append(at.name), verify(at, **share))[1])
    checkpointer = make(tmp_path, keep=2)
    for step in (1, 2, 3):
        save(checkpointer, FakeEngine(), step)
    assert read == [f"step-{step:09d}" for step in (1, 2, 3)]


def test_failing_to_delete_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(folders, "delete", refuse)
    checkpointer = make(tmp_path, keep=1)
    for step in (1, 2):
        save(checkpointer, FakeEngine(), step)
    assert "could not delete an old checkpoint: Permission denied" in events(tmp_path, "fault")[0]["reason"]


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
        assert str(error) == f"checkpoint of step 2 was not saved{where}: No space left on device"
    assert events(tmp_path, "fault")[0]["step"] == 2
    monkeypatch.undo()
    assert make(tmp_path).resume(FakeEngine()) == TrainState(1, 8, 64)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000000001"]


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

    monkeypatch.setattr("trainer.checkpoint.manager.write_part", buggy)
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
    assert {"rank-00000.safetensors", "state.json", "metrics.jsonl", "MANIFEST.json"} <= set(before)
    assert before[-1].startswith(".tmp-step-"), "the folder's own entries come last before the rename"
    assert order[renamed + 1] == "checkpoints"
