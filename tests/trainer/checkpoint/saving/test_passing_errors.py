"""Errors of a file system that pass, and such that do not, at each point of a save's protocol."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from checkpointed import FakeEngine, Team, events, make, save
from trainer.checkpoint import folder as folders
from trainer.checkpoint.folder import RENAMES
from trainer.checkpoint.saving.save import ATTEMPTS
from trainer.state import TrainState

WORLD = 3


class Failing:
    """Calls of one kind on paths that match fail, `times` times."""

    def __init__(self, call: str, pattern: str, number: int, times: int) -> None:
        self.pattern, self.number, self.left, self.failed = re.compile(pattern), number, times, 0
        self.call = call

    def check(self, path: str) -> None:
        if self.left and self.pattern.search(path):
            self.left -= 1
            self.failed += 1
            raise OSError(self.number, os.strerror(self.number), path)

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        real = getattr(Path if self.call == "read_bytes" else os, self.call)

        def call(first: Any, *more: Any, **named: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{first}") if self.call == "fsync" else str((first, *more)[-1])
            self.check(path)
            return real(first, *more, **named)

        patch.setattr(Path if self.call == "read_bytes" else os, self.call, call)


def saves(run: Path, failing: Failing, patch: pytest.MonkeyPatch, first: int = 1) -> list[Any]:
    """Each rank's result of the saves of steps 1 and 2, or of 2 alone; it meets the failures."""
    team = Team(WORLD)

    def train(rank: int) -> None:
        checkpointer, engine = make(run, rank, team, keep=2), FakeEngine(rank, WORLD)
        for step in range(first, 2):
            save(checkpointer, engine, step)
        team.gather(rank)(None)
        if rank == 0:
            failing.apply(patch)
        team.gather(rank)(None)
        save(checkpointer, engine, 2)
        checkpointer.close()

    found = team.run(train)
    patch.undo()
    return found


# The call, the path, and how many lines it takes to tell: each rank's attempt that failed is one.
POINTS = [
    ("fsync", r"step-000000002-.*/rank-00001\.safetensors", True),
    ("fsync", r"step-000000002-.*/rank-00000\.safetensors", True),
    ("fsync", r"step-000000002-.*/state\.json", True),
    ("fsync", r"step-000000002-.*/MANIFEST\.json", True),
    ("fsync", r"\.tmp-step-000000002-[^/]*$", True),
    ("replace", r"-2-part-00002", True),
    ("rename", r"checkpoints/step-000000002$", False),
    ("fsync", r"checkpoints$", False),  # after the rename
    ("replace", r"-2-verdict", False),  # after the commit
    ("read_bytes", r"-2-verdict", False),
    ("read_bytes", r"-2-part-00001", True),
    ("replace", r"-2-verified-00001", False),
    ("replace", r"verified\.json", True),
]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize(("call", "pattern", "told"), POINTS)
def test_an_error_that_passes_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, pattern: str, told: bool, number: int
) -> None:
    failing = Failing(call, pattern, number, times=1)
    assert saves(tmp_path, failing, monkeypatch) == [None] * WORLD
    assert failing.failed == 1
    root = tmp_path / "checkpoints"
    assert folders.steps(root) == [2, 1]
    for step in (1, 2):
        folders.verify(folders.step_folder(root, step))
    assert [name for name in os.listdir(root) if name.startswith(".tmp")] == []
    lines = events(tmp_path, "fault") if '"fault"' in (tmp_path / "events.jsonl").read_text() else []
    assert len(lines) == told
    assert make(tmp_path).resume(FakeEngine()) == TrainState(2, 16, 128)


@pytest.mark.parametrize(("call", "pattern", "told"), [point for point in POINTS if point[2]][:-1])
def test_an_error_that_stays_ends_the_run_after_three_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, pattern: str, told: bool
) -> None:
    failing = Failing(call, pattern, errno.EIO, times=1000)
    found = saves(tmp_path, failing, monkeypatch)
    assert all("checkpoint of step 2 was not saved" in str(error) for error in found), found
    assert failing.failed >= ATTEMPTS
    reasons = [event["reason"] for event in events(tmp_path, "fault")]
    assert ["trying again" in reason for reason in reasons] == [True, True, False]
    assert folders.steps(tmp_path / "checkpoints") == [1]
    assert make(tmp_path).resume(FakeEngine()) == TrainState(1, 8, 64)


def test_a_table_that_could_not_be_posted_is_posted_by_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing("replace", r"/table-", errno.ESTALE, times=1)
    assert saves(tmp_path, failing, monkeypatch, first=2) == [None] * WORLD
    assert failing.failed == 1
    assert make(tmp_path).resume(FakeEngine()) == TrainState(2, 16, 128)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE], ids=errno.errorcode.get)
def test_a_rename_whose_answer_was_lost_is_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    rename, lost = os.rename, []

    def renamed(source: Path, target: Path) -> None:
        rename(source, target)
        if target.name == "step-000000002" and not lost:
            lost.append(target)
            raise OSError(number, os.strerror(number), str(source))

    monkeypatch.setattr(os, "rename", renamed)
    assert saves(tmp_path, Failing("fsync", "none", 0, times=0), monkeypatch) == [None] * WORLD
    assert lost and make(tmp_path).resume(FakeEngine()) == TrainState(2, 16, 128)


def test_a_verdict_that_cannot_be_posted_says_that_the_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing("replace", r"-2-verdict", errno.EIO, times=RENAMES)
    found = saves(tmp_path, failing, monkeypatch)
    assert failing.failed == RENAMES
    assert "step-000000002 is whole, but the other ranks could not be told: Input/output error" in str(
        found[0]
    )
    assert all("rank 0: " in str(error) for error in found[1:])
    (fault,) = events(tmp_path, "fault")
    assert "trying again" not in fault["reason"]
    assert make(tmp_path).resume(FakeEngine()) == TrainState(2, 16, 128)
