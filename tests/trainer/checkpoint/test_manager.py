"""Saving, keeping and resuming: many ranks through one folder, and every way that a folder can go wrong."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpointed import FakeEngine, Team, events, flip, make, save, tensors_of
from parallel.engine import Chunk
from trainer.checkpoint import folder as folders
from trainer.checkpoint import store
from trainer.state import Identity, TrainState


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
    write_batches = store.write_batches

    def slow(*args: Any) -> Any:
        gate.wait(10)
        return write_batches(*args)

    monkeypatch.setattr("trainer.checkpoint.saving.save.write_batches", slow)
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
    files = [f"rank-{r:05d}.safetensors" for r in range(before)]
    assert names == ["FILES.txt", "MANIFEST.json", *files, "state.json"]
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


def test_where_the_resumed_checkpoint_is_gone_there_is_no_going_back(tmp_path: Path) -> None:
    """Steps that fp16 skips update nothing, and are saved: the checkpoint that was resumed is an old one."""
    engine = FakeEngine()
    save(make(tmp_path), engine, 1)
    checkpointer = make(tmp_path, keep=1)
    assert checkpointer.resume(engine) is not None
    save(checkpointer, engine, 2)
    assert checkpointer.go_back(engine, "not finite", lambda state: True) is None


def test_steps_without_an_update_push_no_checkpoint_out(tmp_path: Path) -> None:
    """fp16 skips steps until its scale fits, and saves them. It may end in that none can be made at all."""
    engine = FakeEngine()
    before = make(tmp_path)
    for step in (1, 2):
        save(before, engine, step)
    checkpointer = make(tmp_path, keep=1)
    assert checkpointer.resume(engine) is not None
    for step in (3, 4):
        checkpointer.save(TrainState(step, 8 * step, 64 * step), engine)
    assert folders.steps(checkpointer.root) == [4, 3, 2, 1]
    found = checkpointer.go_back(engine, "not finite", lambda state: True)
    assert found == TrainState(1, 8, 64) and folders.steps(checkpointer.root) == [1]
    save(checkpointer, engine, 2)
    assert folders.steps(checkpointer.root) == [2]


def test_due(tmp_path: Path) -> None:
    def saved(**options: int) -> list[int]:
        return [step for step in range(1, 12) if make(tmp_path, **options).due(step)]

    assert saved(every=5) == [5, 10]
    assert saved(every=5, keep_every=4) == [4, 5, 8, 10]
    assert saved(every=0, keep_every=4) == [4, 8]
    assert saved(every=0) == []


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


@pytest.mark.parametrize("steps", [(1,), (1, 2)])
@pytest.mark.parametrize("name", ["MANIFEST.json", "FILES.txt", "state.json", "rank-00000.safetensors"])
def test_where_nothing_verifies_the_start_ends_and_leaves_all_in_place(
    tmp_path: Path, steps: tuple[int, ...], name: str
) -> None:
    for step in steps:
        save(make(tmp_path), FakeEngine(), step)
        flip(tensors_of(tmp_path, step).with_name(name))
    with pytest.raises(RuntimeError, match=rf"no checkpoint of this run verifies: .*{name}: damaged"):
        make(tmp_path).resume(FakeEngine())
    assert folders.steps(tmp_path / "checkpoints") == sorted(steps, reverse=True)


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
            Identity("dddd", 0, {"hidden": 8, "layers": 2}, {"data.sources": [{"path": "b", "weight": 1}]}),
            RuntimeError,
            r"corpus changed since checkpoint .*: data\.sources\[0\]\.path is 'b', it was 'a': set it back",
        ),
        (
            Identity("dddd", 0, {"hidden": 8, "layers": 2}, {"optim.name": "muon"}),
            ValueError,
            r"optim.name is 'muon', but .* with 'adamw'",
        ),
        (
            Identity("dddd", 0, {"hidden": 8, "layers": 2}, {"data.augment": {"flip": 0.5, "hue": 0.0}}),
            ValueError,
            r"data\.augment\.flip is 0\.5, but .* with 0\.25",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_every_rank(
    tmp_path: Path, identity: Identity, kind: type[Exception], words: str
) -> None:
    sources = [{"path": "a", "weight": 1}]
    kept = {"optim.name": "adamw", "optim.lr": 1e-3, "train.steps": 10, "data.sources": sources}
    kept["data.augment"] = {"flip": 0.25, "hue": 0.0}
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


def test_a_resume_on_other_ranks_names_them_and_their_layout(tmp_path: Path) -> None:
    save(make(tmp_path, layout="dp1 tp2"), FakeEngine(), 1)
    team = Team(2)
    team.run(lambda rank: make(tmp_path, rank, team, layout="dp2").resume(FakeEngine(rank, 2)))
    (told,) = events(tmp_path, "resume")
    assert told["changed"] == ["ranks 1 → 2", "layout dp1 tp2 → dp2"]
    assert told["reason"].endswith("not as it was: ranks 1 → 2, layout dp1 tp2 → dp2")


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
