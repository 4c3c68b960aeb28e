"""Notes between ranks on a file system whose client remembers names as missing, and notes that are gone."""

import errno
import os
from pathlib import Path

import pytest

from checkpointed import FakeEngine, Team, events, make, save
from trainer.checkpoint import folder as folders
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.pieces.files import DamagedError
from trainer.checkpoint.saving import attempt
from trainer.checkpoint.saving.board import FolderBoard
from trainer.checkpoint.saving.retention import RECORD

WORLD = 3


class Remembering(FolderBoard):
    """As on NFS, where a name that was missing stays missing until this host changes the folder."""

    asked = 0

    def read(self, key: str) -> bytes | None:
        return super().read(key) if self.asked else None

    def forget_missing(self) -> None:
        self.asked += 1
        super().forget_missing()


def test_a_verdict_is_found_although_this_host_remembers_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "ASK_SECONDS", 0.01)
    board = Remembering(tmp_path / "notes")
    one = attempt.Attempt(tmp_path, 1, "n", rank=1, world=2, patience=10, board=board, guard=lambda: None)
    board.post("n-1-verdict", b'{"then": [1]}')
    assert one.finish(8) == (0, [1])
    assert os.listdir(tmp_path / "notes") == ["n-1-verdict"]


def test_a_checkpoint_that_another_host_has_committed_is_whole_although_this_host_remembers_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make(tmp_path), FakeEngine(), 1)
    final = folders.step_folder(tmp_path / "checkpoints", 1)
    unseen = final.with_name("unseen")
    final.rename(unseen)

    def forget_missing(folder: Path) -> bool:
        assert folder == final.parent
        unseen.rename(final)
        return True

    monkeypatch.setattr("common.files.forget_missing", forget_missing)
    assert read_manifest(final).step == 1
    (final / "MANIFEST.json").unlink()
    monkeypatch.undo()
    with pytest.raises(DamagedError, match="missing: not a whole checkpoint"):
        read_manifest(final)


def test_notes_do_not_grow_with_the_saves(tmp_path: Path) -> None:
    team, names = Team(WORLD), []

    def train(rank: int) -> None:
        checkpointer, engine = make(tmp_path, rank, team, keep=1), FakeEngine(rank, WORLD)
        for step in range(1, 5):
            save(checkpointer, engine, step)
            team.gather(rank)(None)
            if rank == 0:
                (notes,) = (tmp_path / "checkpoints").glob(".tmp-notes-*")
                names.append(sorted(os.listdir(notes)))
            team.gather(rank)(None)
        checkpointer.close()

    assert team.run(train) == [None] * WORLD
    assert len(names[3]) == len(names[0]) < 10, names


def test_a_rank_whose_note_is_gone_has_not_said_that_a_checkpoint_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FolderBoard.read
    monkeypatch.setattr(
        FolderBoard, "read", lambda self, key: None if key.endswith("verified-00002") else read(self, key)
    )
    team = Team(WORLD)

    def train(rank: int) -> None:
        checkpointer, engine = make(tmp_path, rank, team, keep=1), FakeEngine(rank, WORLD)
        for step in (1, 2):
            save(checkpointer, engine, step)
        checkpointer.close()

    assert team.run(train) == [None] * WORLD
    assert not (tmp_path / "checkpoints" / RECORD).exists()
    assert folders.steps(tmp_path / "checkpoints") == [2, 1], "nothing is deleted for it"


def test_a_folder_that_cannot_be_listed_costs_the_note_of_a_verification_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = make(tmp_path, keep=1)

    def away(root: Path) -> list[int]:
        raise OSError(errno.ESTALE, "Stale file handle", str(root))

    monkeypatch.setattr(folders, "steps", away)
    checkpointer.retention.note(1, "stamp")
    (fault,) = events(tmp_path, "fault")
    assert fault["reason"].startswith("could not note that it verified: Stale file handle")


def test_a_name_that_its_process_has_removed_does_not_end_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".tmp-look-1").touch()
    (tmp_path / ".tmp-step-000000001-n").mkdir()
    rename = os.rename

    def renamed(source: Path, target: Path) -> None:
        if source.name == ".tmp-look-1":
            source.unlink()
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)
    folders.clean(tmp_path)
    assert os.listdir(tmp_path) == []
