"""Which checkpoints stay, which are told apart by their step, and what is never saved."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpointed import FakeEngine, events, flip, make, save, tensors_of
from launch import cli
from trainer.checkpoint import folder as folders
from trainer.checkpoint.finite import is_finite
from trainer.checkpoint.pieces.files import FileEntry
from trainer.checkpoint.reader import DTYPES
from trainer.state import TrainState


def test_milestones_stay_and_the_last_checkpoint_before_the_decay(tmp_path: Path) -> None:
    checkpointer = make(tmp_path, every=2, keep=2, keep_every=5, decays={9})
    for step in range(1, 21):
        if checkpointer.due(step):
            save(checkpointer, FakeEngine(), step)
    assert folders.steps(checkpointer.root) == [20, 18, 15, 10, 8, 5]
    saves = {event["step"]: event["reason"] for event in events(tmp_path, "save")}
    assert saves[5] == "every 5 steps, never to be deleted" and saves[4] == "every 2 steps"


def test_the_last_before_each_decay_stays_when_a_run_was_made_longer(tmp_path: Path) -> None:
    """The run decayed after step 4, and was made longer: now it will after 9."""
    checkpointer = make(tmp_path, keep=1, decays={4, 9})
    engine = FakeEngine()
    for step in range(1, 13):
        save(checkpointer, engine, step)
    assert folders.steps(tmp_path / "checkpoints") == [12, 9, 4]


def test_a_damaged_checkpoint_is_not_the_one_kept_from_before_the_decay(tmp_path: Path) -> None:
    checkpointer = make(tmp_path, keep=1, decays={4})
    for step in (3, 4):
        save(checkpointer, FakeEngine(), step)
        (folders.step_folder(checkpointer.root, step) / "state.json").touch()
    assert folders.steps(checkpointer.root) == [4]
    checkpointer = make(tmp_path, keep=2, decays={4})
    save(checkpointer, FakeEngine(), 5)
    (folders.step_folder(checkpointer.root, 4) / "state.json").write_text("{}")
    save(checkpointer, FakeEngine(), 6)
    assert folders.steps(checkpointer.root) == [6, 5, 4], "the damaged one is not counted, nor deleted"


@pytest.mark.parametrize("kind", ["copied", "renamed"])
def test_a_checkpoint_under_another_steps_name_is_none(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpointer = make(tmp_path)
    for step in (4, 8):
        save(checkpointer, FakeEngine(), step)
    of_8, of_12 = (folders.step_folder(checkpointer.root, step) for step in (8, 12))
    shutil.copytree(of_8, of_12) if kind == "copied" else of_8.rename(of_12)
    (tmp_path / "config.yaml").touch()
    said = (
        "step-000000012: holds step 8, by its manifest: copied or renamed: its name should be step-000000008"
    )
    assert cli.main(["checkpoint", "verify", str(tmp_path)]) == 1
    capsys.readouterr()
    assert cli.main(["checkpoint", "list", "--json", str(tmp_path)]) == 0
    assert said in json.loads(capsys.readouterr().out)["checkpoints"][0]["error"]
    # Retention does not count it, and a resume goes on from the newest that is what it says.
    again, engine = make(tmp_path, keep=1), FakeEngine()
    found = again.resume(engine)
    newest = 8 if kind == "copied" else 4
    assert found is not None and found.step == newest and engine.holds(newest)
    assert said in events(tmp_path, "fault")[0]["reason"]
    assert events(tmp_path, "fault")[0]["set_aside"] == "step-000000012.damaged-1"
    save(again, engine, 12)
    assert folders.steps(again.root) == [12]


def test_retention_does_not_count_a_checkpoint_under_another_steps_name(tmp_path: Path) -> None:
    checkpointer = make(tmp_path, keep=2)
    save(checkpointer, FakeEngine(), 4)
    shutil.copytree(folders.step_folder(checkpointer.root, 4), folders.step_folder(checkpointer.root, 6))
    save(checkpointer, FakeEngine(), 8)
    assert folders.steps(checkpointer.root) == [8, 6, 4]
    assert "step-000000006: holds step 4" in events(tmp_path, "fault")[0]["reason"]


def test_a_folder_that_is_not_named_as_a_run_names_it_is_no_checkpoint(tmp_path: Path) -> None:
    checkpointer = make(tmp_path)
    save(checkpointer, FakeEngine(), 4)
    shutil.copytree(folders.step_folder(checkpointer.root, 4), checkpointer.root / "step-0000000012")
    assert folders.steps(checkpointer.root) == [4]
    assert make(tmp_path).resume(FakeEngine()) is not None


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, value: float, asynchronous: bool) -> None:
    checkpointer, engine = make(tmp_path, asynchronous=asynchronous), FakeEngine()
    save(checkpointer, engine, 1)
    engine.set(2.0)
    engine.sharded["optim.exp_avg.w"][3, 2] = value
    with pytest.raises(RuntimeError) as caught:  # noqa: PT012  # by the save itself, or by the wait for it
        checkpointer.save(TrainState(2, 16, 128), engine)
        checkpointer.wait()
    assert str(caught.value) == (
        "checkpoint of step 2 was not saved: tensor optim.exp_avg.w holds a NaN or an infinity: the run has "
        "diverged: lower optim.lr or raise optim.eps; earlier checkpoints are as they were"
    )
    assert folders.steps(checkpointer.root) == [1]
    assert make(tmp_path).resume(engine) == TrainState(1, 8, 64)


FLOATS = {name: dtype for name, dtype in DTYPES.items() if dtype.is_floating_point}


@pytest.mark.parametrize("name", FLOATS)
def test_exactly_the_numbers_that_are_not_finite_are_found(name: str) -> None:
    dtype = FLOATS[name]
    if dtype.itemsize <= 2:  # every pattern of bits there is
        bits = np.arange(1 << (8 * dtype.itemsize), dtype=np.uint32).astype(f"u{dtype.itemsize}")
        values = torch.from_numpy(bits.view(f"i{dtype.itemsize}")).view(dtype)
    else:
        info = torch.finfo(dtype)
        edges = [0.0, info.tiny, info.smallest_normal, info.max, 1.0, float("inf"), float("nan")]
        values = torch.tensor([sign * edge for edge in edges for sign in (1, -1)], dtype=dtype)
    finite = values.double().isfinite()
    as_bits = values.view(getattr(torch, f"int{8 * dtype.itemsize}"))  # of 8-bit floats torch selects none
    assert is_finite(bytes_of(as_bits[finite]), name)
    for value in as_bits[~finite].view(dtype):
        one = torch.ones(5).to(dtype)
        one[3] = value
        assert not is_finite(bytes_of(one), name), value
    assert is_finite(memoryview(b"\xff" * 8), "I64")


def bytes_of(values: torch.Tensor) -> memoryview:
    return values.view(torch.uint8).numpy().data.cast("B")


def test_keeps_the_newest_that_verify(tmp_path: Path) -> None:
    checkpointer, engine = make(tmp_path, keep=2, asynchronous=True), FakeEngine()
    for step in range(1, 5):
        save(checkpointer, engine, step, is_last=step == 4)
    checkpointer.settle()
    assert folders.steps(checkpointer.root) == [4, 3]
    flip(tensors_of(tmp_path, 4))  # does not count any more
    save(checkpointer, engine, 5)
    checkpointer.settle()
    assert folders.steps(checkpointer.root) == [5, 4, 3]
    assert "not counted among the 2 to keep" in events(tmp_path, "fault")[0]["reason"]
    assert not [name for name in os.listdir(checkpointer.root) if name.startswith(".tmp")]


def test_a_checkpoint_that_counted_once_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    check = folders.check_file

    def counted(at: Path, name: str, entry: FileEntry) -> None:
        if name.startswith("rank"):
            read.append(at.name)
        check(at, name, entry)

    monkeypatch.setattr(folders, "check_file", counted)
    checkpointer = make(tmp_path, keep=2)
    for step in (1, 2, 3):
        save(checkpointer, FakeEngine(), step)
    assert read == [f"step-{step:09d}" for step in (1, 2, 3)]
    again = make(tmp_path, keep=2)  # another start
    assert again.resume(FakeEngine()) is not None
    save(again, FakeEngine(), 4)
    assert read[3:] == ["step-000000004"], "what is known to have verified was read again"
    assert folders.steps(again.root) == [4, 3]


def test_failing_to_delete_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(folders, "delete", refuse)
    checkpointer = make(tmp_path, keep=1)
    for step in (1, 2):
        save(checkpointer, FakeEngine(), step)
    assert "could not delete an old checkpoint: Permission denied" in events(tmp_path, "fault")[0]["reason"]
