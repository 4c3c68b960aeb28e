"""The ledger's files: one for each machine and range of steps, of which a resume reads the last."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from checkpointed import FakeEngine, events, make, save
from trainer.folder.fence import Fence
from trainer.record.shared_log import ALONE, Machine, SharedDigest, SharedLog, files_of
from whole_runs import lines_of

STEPS = 10


def ledger(folder: Path, machine: Machine = ALONE, **more: Any) -> SharedLog:
    return SharedLog(folder, "ledger", machine=machine, steps=STEPS, **more)


def write(log: SharedLog, first: int, last: int, width: int = 1) -> None:
    for step in range(first, last + 1):
        numbers = list(range((step - 1) * width, step * width))
        log.write({"step": step, "dp_rank": log.machine.number, "sequences": numbers})


def steps_in(folder: Path, machine: int = 0) -> list[int]:
    return [line["step"] for line in lines_of(folder, "ledger") if line["dp_rank"] == machine]


def test_the_files_of_a_log_are_read_in_the_order_of_their_lines(tmp_path: Path) -> None:
    for number in (1, 0):
        write(ledger(tmp_path, Machine(number, 2)), 1, 25)
    (tmp_path / "ledger-notes.jsonl").touch()
    assert [file.path.name for file in files_of(tmp_path, "ledger")] == [
        "ledger.jsonl",
        "ledger-000000000.machine-00001.jsonl",
        "ledger-000000010.jsonl",
        "ledger-000000010.machine-00001.jsonl",
        "ledger-000000020.jsonl",
        "ledger-000000020.machine-00001.jsonl",
    ]
    assert steps_in(tmp_path, 0) == steps_in(tmp_path, 1) == list(range(1, 26))
    assert len((tmp_path / "ledger.jsonl").read_bytes().splitlines()) == 10


def test_machines_are_numbered_in_the_order_of_their_first_ranks() -> None:
    names = ["b", "b", "a", "c", "a"]
    assert Machine.of_each(names) == [(0, 3), (0, 3), (1, 3), (2, 3), (1, 3)]


def bytes_of_a_resume(folder: Path, steps: int) -> tuple[int, int]:
    """Bytes read and written by the resume of a run of so many steps, killed five steps after its save."""
    folder.mkdir()
    log, digest = ledger(folder), SharedDigest(ledger(folder))
    write(log, 1, steps + 5, width=100)
    noted = digest.at(steps)
    log.close()
    before = transferred()
    digest = SharedDigest(ledger(folder))
    assert not list(digest.changes(noted, steps))
    assert ledger(folder).cut_after(steps, digest.known) == (5, 0)
    read, written = (now - then for now, then in zip(transferred(), before))
    assert steps_in(folder) == list(range(1, steps + 1))
    return read, written


def transferred() -> tuple[int, int]:
    """Bytes that this process has read(2) and written."""
    text = Path("/proc/self/io").read_text().split()
    return int(text[1]), int(text[3])


def test_a_resume_reads_as_many_bytes_after_a_hundred_times_the_steps(tmp_path: Path) -> None:
    bytes_of_a_resume(tmp_path / "warm", 8)
    once, hundredfold = bytes_of_a_resume(tmp_path / "once", 28), bytes_of_a_resume(tmp_path / "more", 2808)
    lines = 13 * 100 * 10  # of the last file, at most ten bytes a number
    assert 2_000 < once[0] < 3 * lines and 2_000 < once[1] < 2 * lines
    # The numbers of later steps have more digits.
    assert hundredfold[0] < 2 * once[0] and hundredfold[1] < 2 * once[1]


@pytest.mark.parametrize("step", [0, 4, 10, 11, 19, 20])
def test_a_run_that_goes_back_leaves_no_later_line_of_any_machine(tmp_path: Path, step: int) -> None:
    for number in (0, 1, 2):
        write(ledger(tmp_path, Machine(number, 3)), 1, 45)
    (tmp_path / "ledger-000000040.jsonl").open("a").write('{"step": 46, "dp_')
    before = {file.path: file.path.read_bytes() for file in files_of(tmp_path, "ledger")}
    # The two machines of the next start.
    later, torn = ledger(tmp_path, Machine(0, 2)).cut_after(step)
    assert (later, torn) == (3 * (45 - step) + 1, 0)
    for machine in (0, 1, 2):
        assert steps_in(tmp_path, machine) == list(range(1, step + 1))
    for number in (0, 1):
        write(ledger(tmp_path, Machine(number, 2)), step + 1, 45)
    for file in files_of(tmp_path, "ledger"):
        if file.machine < 2 and file.path.name != "ledger-000000040.jsonl":
            assert file.path.read_bytes() == before[file.path]


def checkpointed(folder: Path, step: int, machine: Machine = ALONE) -> Any:
    """Write lines up to `step` and a checkpoint of it; return the checkpointer and the log."""
    log = ledger(folder, machine)
    checkpointer = make(folder, logs=[log])
    write(log, 1, step)
    save(checkpointer, FakeEngine(), step)
    return checkpointer, log


def logs_of(folder: Path, step: int) -> dict[str, Any]:
    at = folder / f"checkpoints/step-{step:09d}/state.json"
    return json.loads(at.read_text())["logs"]["ledger.jsonl"]  # type: ignore[no-any-return]


def test_a_checkpoint_notes_the_files_of_its_step_and_the_bytes_of_those_before(tmp_path: Path) -> None:
    other = ledger(tmp_path, Machine(1, 2))
    write(other, 1, 24)
    checkpointed(tmp_path, 23, Machine(0, 2))
    noted = logs_of(tmp_path, 23)
    assert list(noted["files"]) == ["ledger-000000020.jsonl", "ledger-000000020.machine-00001.jsonl"]
    size = (tmp_path / "ledger-000000020.machine-00001.jsonl").stat().st_size
    assert noted["files"]["ledger-000000020.machine-00001.jsonl"]["bytes"] == size * 3 // 4
    earlier = [file.path.stat().st_size for file in files_of(tmp_path, "ledger")[:4]]
    assert noted["earlier_bytes"] == sum(earlier)


def test_one_that_is_saved_after_others_notes_the_same(tmp_path: Path) -> None:
    log, digest = ledger(tmp_path), SharedDigest(ledger(tmp_path))
    for step in range(1, 41):
        write(log, step, step)
        if step % 3 == 0:
            assert digest.at(step) == SharedDigest(ledger(tmp_path)).at(step)
            assert not digest.lost


@pytest.mark.parametrize("wrecked", ["ledger.jsonl", "ledger-000000010.jsonl", "ledger-000000020.jsonl"])
def test_a_file_that_was_deleted_is_told_at_the_resume(tmp_path: Path, wrecked: str) -> None:
    _, log = checkpointed(tmp_path, 23)
    log.close()
    assert make(tmp_path, logs=[ledger(tmp_path)]).resume(FakeEngine()) is not None
    assert not events(tmp_path, "fault")
    (tmp_path / wrecked).unlink()
    assert make(tmp_path, logs=[ledger(tmp_path)]).resume(FakeEngine()) is not None
    (told,) = events(tmp_path, "fault")
    assert "was deleted since" in told["reason"] or "were deleted or cut since" in told["reason"]
    assert told["reason"].endswith("the run goes on") and "ledger" in told["reason"]


def test_a_file_of_all_steps_of_an_earlier_version_is_cut_and_gone_on_with(tmp_path: Path) -> None:
    """Its checkpoint notes bytes and hash of one file; newer lines go to the files of their steps."""
    whole = SharedLog(tmp_path, "ledger")
    write(whole, 1, 38)
    noted = SharedDigest(whole).at(33)["files"]["ledger.jsonl"]
    digest = SharedDigest(ledger(tmp_path))
    assert not list(digest.changes(noted, 33))
    assert digest.known(tmp_path / "ledger.jsonl") == noted["bytes"]
    assert ledger(tmp_path).cut_after(33, digest.known) == (5, 0)
    write(ledger(tmp_path), 34, 36)
    again = SharedDigest(ledger(tmp_path))
    assert not list(again.changes(digest.at(36), 36)), "what the first resume cut is not missed"
    write(ledger(tmp_path), 37, 52)
    assert steps_in(tmp_path) == list(range(1, 53))
    found = digest.at(52)
    assert list(found["files"]) == ["ledger-000000050.jsonl"]
    # Back to the checkpoint of the earlier version.
    assert not list(digest.changes(noted, 33))
    assert ledger(tmp_path).cut_after(33, digest.known) == (19, 0)
    assert steps_in(tmp_path) == list(range(1, 34))


def test_what_is_written_is_on_disk_before_the_next_file_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: on_disk.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd)
    )
    log = ledger(tmp_path)
    write(log, 1, 10)
    assert not on_disk
    write(log, 11, 11)
    assert on_disk == [str(tmp_path / "ledger.jsonl")]
    assert not log.sync() and on_disk[1:] == [str(tmp_path / "ledger-000000010.jsonl")]


def test_a_file_that_vanished_before_the_next_began_is_told(tmp_path: Path) -> None:
    checkpointer, log = checkpointed(tmp_path, 8)
    write(log, 9, 10)
    (tmp_path / "ledger.jsonl").unlink()
    write(log, 11, 12)
    save(checkpointer, FakeEngine(), 12)
    (told,) = events(tmp_path, "fault")
    assert "ledger.jsonl was deleted, replaced or cut while the run wrote" in told["reason"]


@pytest.mark.parametrize("at", [9, 11])
def test_a_process_of_an_earlier_start_writes_into_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """It has looked at the epoch for its line of step 12, and goes on once the next start has cut after 9 or
    11 and has written that line itself.
    """
    fence, later = Fence(tmp_path), Fence(tmp_path)
    fence.take()
    left_behind = ledger(tmp_path, guard=fence.check)
    write(left_behind, 1, 11)
    line, real = os.write, os.write

    def stands_still(*what: Any) -> int:
        monkeypatch.setattr(os, "write", real)
        later.take()
        new = ledger(tmp_path, guard=later.check)
        new.cut_after(at)
        write(new, at + 1, 12)
        return line(*what)

    monkeypatch.setattr(os, "write", stands_still)
    write(left_behind, 12, 12)
    assert steps_in(tmp_path) == list(range(1, 13))
