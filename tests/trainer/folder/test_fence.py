"""Fencing: once a later start has taken the run, an earlier one writes nothing more."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from common.files import write_atomically
from trainer.checkpoint import folder as folders
from trainer.checkpoint.merge import Part
from trainer.checkpoint.saving.attempt import Attempt
from trainer.checkpoint.saving.board import FolderBoard
from trainer.folder.fence import EPOCH, Fence
from trainer.record.events import EventLog
from trainer.record.sinks import JsonlLog, truncate_after


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def attempt(folder: Path, fence: Fence, rank: int = 0) -> Attempt:
    root = folder / "checkpoints"
    root.mkdir(exist_ok=True)
    board = FolderBoard(root / ".tmp-notes")
    return Attempt(root, 4, "nonce", rank=rank, world=2, patience=5.0, board=board, guard=fence.check)


def publish(folder: Path, fence: Fence) -> None:
    one = attempt(folder, fence)
    one.tmp.mkdir(exist_ok=True)
    one.publish(Part({}, {}))


def commit(folder: Path, fence: Fence) -> None:
    one = attempt(folder, fence)
    one.tmp.mkdir(exist_ok=True)
    if one.final.exists():
        one.final.rename(one.final.with_name("before"))
    folders.commit(one.tmp, one.final, [], step=4, sequences=8, guard=fence.check)


WRITERS: dict[str, Callable[[Path, Fence], object]] = {
    "a log": lambda folder, fence: JsonlLog(folder / "ledger.jsonl", fence.check).write({"step": 1}),
    "events": lambda folder, fence: EventLog(folder / "events.jsonl", fence.check).event("fault", 1, "late"),
    "a log's repair": lambda folder, fence: truncate_after(folder / "metrics.jsonl", 0, fence.check),
    "a file anew": lambda folder, fence: write_atomically(folder / "config.yaml", b"late", guard=fence.check),
    "a save's begin": lambda folder, fence: attempt(folder, fence).begin(),
    "a save's part": publish,
    "a save's commit": commit,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_later_start_has_taken_is_not_written(tmp_path: Path, writer: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "config.yaml").write_text("mine")
    first, second = Fence(tmp_path), Fence(tmp_path)
    first.take()
    WRITERS[writer](tmp_path, first)  # while it is its own
    mark = second.take()
    written = (tmp_path / ".epoch").read_bytes()
    before = tree(tmp_path)
    with pytest.raises(
        RuntimeError, match=rf"taken over by .*process {os.getpid()} on .*start 2; .*start 1,"
    ):
        WRITERS[writer](tmp_path, first)
    after = {name: data for name, data in tree(tmp_path).items() if "checkpoints" not in name}
    assert after == {name: data for name, data in before.items() if "checkpoints" not in name}
    assert written == mark.encode()


def test_ranks_share_the_epoch_that_rank_0_took(tmp_path: Path) -> None:
    first, peer = Fence(tmp_path), Fence(tmp_path)
    with pytest.raises(RuntimeError, match="not held by this start of the run yet"):
        peer.check()
    peer.join(first.take())
    peer.check()
    assert (first.epoch, peer.epoch) == (1, 1)


def test_two_that_take_the_same_number_are_told_apart(tmp_path: Path) -> None:
    """Where the filesystem has no locks, both may have read the same number; the last to write it has it."""
    one, other = Fence(tmp_path), Fence(tmp_path)
    one.take()
    taken = (tmp_path / EPOCH).read_bytes()
    (tmp_path / EPOCH).unlink()
    other.take()
    assert one.epoch == other.epoch == 1 and taken != (tmp_path / EPOCH).read_bytes()
    other.check()
    with pytest.raises(RuntimeError, match="taken over"):
        one.check()


@pytest.mark.parametrize("found", [b"", b"\xff\xfe nonsense", b"7", b"12345678901234567890 x process 1 on y"])
def test_a_damaged_mark_is_nobodys(tmp_path: Path, found: bytes) -> None:
    fence = Fence(tmp_path)
    fence.take()
    (tmp_path / EPOCH).write_bytes(found)
    with pytest.raises(RuntimeError, match=r"taken over|is gone"):
        fence.check()
    fence.take()
    fence.check()


def test_the_epoch_grows_whatever_it_was(tmp_path: Path) -> None:
    (tmp_path / EPOCH).write_text("9" * 18 + " x process 1 on y\n")
    for number in (10**18, 10**18 + 1):
        (fence := Fence(tmp_path)).take()
        assert fence.epoch == number


def test_a_folder_that_was_moved_is_written_no_more(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    fence = Fence(tmp_path / "run")
    fence.take()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=r"run/\.epoch is gone, .*moved or removed"):
        JsonlLog(tmp_path / "run" / "metrics.jsonl", fence.check).write({"step": 1})
    assert os.listdir(tmp_path) == ["elsewhere"]


def test_a_rank_that_waits_for_a_commit_ends_when_the_run_goes_on_without_it(tmp_path: Path) -> None:
    fence = Fence(tmp_path)
    fence.take()
    left_behind = attempt(tmp_path, fence, rank=1)
    left_behind.begin()
    Fence(tmp_path).take()
    with pytest.raises(RuntimeError, match="taken over"):
        left_behind.finish(8)


def test_a_save_that_a_left_behind_rank_is_writing_is_cleared_away(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    writing = root / ".tmp-step-000000004-nonce"
    writing.mkdir(parents=True)
    (writing / "rank-00001.safetensors").write_text("half")
    (root / ".tmp-link").symlink_to(tmp_path)
    assert folders.clean(root) == [".tmp-link", writing.name]
    assert os.listdir(root) == [] and tmp_path.exists()


def test_retention_of_a_linked_checkpoint_removes_the_link_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "large-disk"
    elsewhere.mkdir()
    (elsewhere / "MANIFEST.json").write_text("{}")
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / "step-000000004").symlink_to(elsewhere)
    folders.delete(root / "step-000000004")
    assert os.listdir(root) == [] and os.listdir(elsewhere) == ["MANIFEST.json"]


def test_a_start_says_which_it_is(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        fence = Fence(tmp_path)
        assert re.fullmatch(rf"{number} [0-9a-f]{{16}} process \d+ on \S+\n", fence.take())
        assert json.loads(str(fence.epoch)) == number


def test_a_start_whose_lock_was_lost_writes_nothing_more(tmp_path: Path) -> None:
    """A lease that another host has taken, which has not begun its own epoch yet."""
    lost = ""

    def lock() -> None:
        if lost:
            raise RuntimeError(lost)

    fence = Fence(tmp_path)
    mark = fence.take(lock)
    fence.check()
    lost = f"{tmp_path} was taken over by process 7 on n2"
    with pytest.raises(RuntimeError, match="by process 7 on n2"):
        fence.check()
    with pytest.raises(RuntimeError, match="by process 7 on n2"):
        fence.take(lock)
    assert (tmp_path / EPOCH).read_text() == mark and os.listdir(tmp_path) == [EPOCH]
