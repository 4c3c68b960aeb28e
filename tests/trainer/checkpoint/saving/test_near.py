"""Ranks of one host that wait for the same note ask the file server as one."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest

from checkpointed import FakeEngine, Team, make, save
from trainer.checkpoint import folder as folders
from trainer.checkpoint.saving import near
from trainer.checkpoint.saving.board import FolderBoard
from trainer.checkpoint.saving.near import NearBoard

RANKS, PAUSE = 8, 2.0


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions to the shared folder: the keys that were read there, and whether it is closed."""
    found: list[str] = []
    read, is_closed = FolderBoard.read, FolderBoard.is_closed
    monkeypatch.setattr(FolderBoard, "read", lambda self, key: (found.append(key), read(self, key))[1])
    monkeypatch.setattr(FolderBoard, "is_closed", lambda self: (found.append(""), is_closed(self))[1])
    return found


def of_a_host(tmp_path: Path, clock: Clock) -> list[NearBoard]:
    return [
        NearBoard(tmp_path / "notes", pause=PAUSE, near=tmp_path / "near", now=clock) for _ in range(RANKS)
    ]


def test_a_host_looks_once_a_pause_however_many_ranks_it_has(tmp_path: Path, asked: list[str]) -> None:
    clock = Clock()
    boards = of_a_host(tmp_path, clock)
    FolderBoard(tmp_path / "notes").post("another", b"x")
    for _ in range(100):
        assert [board.read("verdict") for board in boards] == [None] * RANKS
        clock.now += 0.1
    assert RANKS <= len(asked) < 4 * RANKS, "at first more often, for a quick save must not wait"
    asked.clear()
    for _ in range(100):  # 10 s
        assert [board.read("verdict") for board in boards] == [None] * RANKS
        assert not any(board.is_closed() for board in boards)
        clock.now += 0.1
    assert asked == ["verdict", ""] * 5
    boards[0].post("verdict", b"well")
    asked.clear()
    clock.now += PAUSE
    assert [board.read("verdict") for board in boards] == [b"well"] * RANKS
    assert asked == ["verdict"]


def test_the_rank_whose_turn_it_was_may_die(tmp_path: Path, asked: list[str]) -> None:
    clock = Clock()
    first, second = of_a_host(tmp_path, clock)[:2]
    second.read("verdict")
    clock.now += PAUSE
    assert first.read("verdict") is None and second.read("verdict") is None
    second.post("verdict", b"well")
    clock.now += PAUSE
    assert second.read("verdict") == b"well"


def test_a_clock_that_goes_back_stops_nobody(tmp_path: Path, asked: list[str]) -> None:
    clock = Clock()
    (board,) = of_a_host(tmp_path, clock)[:1]
    assert board.read("verdict") is None
    board.post("verdict", b"well")
    clock.now -= 1e6
    assert board.read("another") is None
    assert board.read("verdict") == b"well"


@pytest.mark.parametrize("wrong", ["a file", "a link", "another user's", "full"])
def test_without_a_folder_of_the_hosts_every_rank_looks_itself(
    tmp_path: Path, asked: list[str], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards = of_a_host(tmp_path, Clock())
    place = tmp_path / "near"
    if wrong == "a file":
        place.touch()
    elif wrong == "a link":
        (tmp_path / "theirs").mkdir()
        place.symlink_to(tmp_path / "theirs")
    elif wrong == "another user's":
        place.mkdir()
        monkeypatch.setattr(os, "getuid", lambda: 4242)
    else:
        replace = os.replace

        def full(source: Path, target: Path) -> None:
            if target.parent == place:
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", full)
        monkeypatch.setattr(os, "utime", lambda *given: full(place, place / "verdict"))
    if wrong in ("a link", "another user's"):
        (place / "verdict").write_bytes(b"forged")
    boards[0].post("verdict", b"well")
    assert [board.read("verdict") for board in boards] == [b"well"] * RANKS
    assert len(asked) == RANKS


def test_a_host_without_room_for_temporary_files_has_a_folder_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tempfile` would name the working directory, or raise on every rank but rank 0."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "full")])
    assert near.of_this_host() == Path(f"/tmp/germinal-notes-{os.getuid()}")


def test_two_processes_of_one_number_write_two_copies(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers that share a folder: what one begins to write is not what the other puts in place."""
    one, other = of_a_host(tmp_path, Clock())[:2]
    one.post("verdict", b"well")
    write = Path.write_bytes

    def no_room(path: Path, data: bytes) -> int:
        path.open("wb").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    def written(path: Path, data: bytes) -> int:
        size = write(path, data)
        monkeypatch.setattr(Path, "write_bytes", no_room)
        assert other.read("verdict") == b"well"
        return size

    monkeypatch.setattr(Path, "write_bytes", written)
    assert one.read("verdict") == b"well"
    assert (tmp_path / "near" / "verdict").read_bytes() == b"well"


def test_old_copies_go(tmp_path: Path, asked: list[str]) -> None:
    clock = Clock()
    (board,) = of_a_host(tmp_path, clock)[:1]
    for number in range(5):
        board.post(f"verdict-{number}", b"well")
        assert board.read(f"verdict-{number}") == b"well"
        now = clock.now
        for name in os.listdir(tmp_path / "near"):
            if str(number) in name:
                os.utime(tmp_path / "near" / name, (now, now))
        clock.now += near.KEPT_SECONDS
    assert {name[:9] for name in os.listdir(tmp_path / "near")} <= {"verdict-3", "verdict-4"}


def test_a_slow_commit_is_asked_for_once_a_pause(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of a save: ranks of one host wait for a rank 0 that takes its time."""
    monkeypatch.setattr(near, "of_this_host", lambda: tmp_path / "near")
    waiting = threading.Event()
    reads: list[str] = []
    read = NearBoard.read
    monkeypatch.setattr(NearBoard, "read", lambda self, key: (reads.append(key), read(self, key))[1])
    monkeypatch.setattr(folders, "_rename", lambda tmp, final, manifest: (waiting.wait(2), tmp.rename(final)))
    team = Team(RANKS)

    def train(rank: int) -> None:
        checkpointer, engine = make(tmp_path, rank, team), FakeEngine(rank, RANKS)
        save(checkpointer, engine, 1)
        checkpointer.close()

    assert team.run(train) == [None] * RANKS
    looks = [key for key in asked if key.endswith("verdict")]
    assert 1 <= len(looks) < len(reads) / 2, "of seven ranks that wait for two seconds, every 0.1 s"


def test_a_step_that_a_run_comes_to_again_has_notes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it went back and its first save has the step of its last one, whose verdict is there yet."""
    monkeypatch.setattr(near, "of_this_host", lambda: tmp_path / "near")
    team, both, root = Team(2), threading.Barrier(2, timeout=20), tmp_path / "checkpoints"
    rename = folders._rename

    def slow(tmp: Path, final: Path, manifest: bytes) -> None:
        threading.Event().wait(0.3)
        rename(tmp, final, manifest)

    def train(rank: int) -> None:
        checkpointer, engine = make(tmp_path, rank, team), FakeEngine(rank, 2)
        for step in (1, 2):
            save(checkpointer, engine, step)
        both.wait()
        if rank == 0:
            folders.set_aside(folders.step_folder(root, 2), folders.DIVERGED)
            monkeypatch.setattr(folders, "_rename", slow)
        both.wait()
        checkpointer.resume(engine)
        save(checkpointer, engine, 2)
        assert folders.steps(root) == [2, 1], "not before the commit"
        checkpointer.close()

    assert team.run(train) == [None] * 2
