"""A rank's log: only into a folder that its run holds, never over another's, and never in a signal's way."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from launch.local import rank_log
from launch.local.rank_log import RankLog


def test_a_file_system_that_hangs_delays_nothing_and_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_log, "CLOSE_SECONDS", 0.1)
    answers = threading.Event()
    logs = [RankLog(tmp_path / "logs" / name, lambda: answers.wait(20)) for name in ("a", "b")]
    began = time.monotonic()
    for log in logs:
        log.line(b"x")
        log.flush()
    for log in logs:
        log.close()
    assert time.monotonic() - began < 5
    answers.set()
    deadline = time.monotonic() + 10
    while not all(log.path.exists() and log.path.read_bytes() for log in logs):
        assert time.monotonic() < deadline  # the file system is back
        time.sleep(0.01)
    (said,) = capfd.readouterr().err.splitlines()
    assert said == f"{tmp_path}/logs does not answer: lines that the ranks print are missing in its logs"


def test_a_pipe_in_the_files_place_ends_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rank.log")
    log = RankLog(tmp_path / "rank.log", lambda: True)
    log.line(b"x")
    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < 1


def test_a_file_server_that_refuses_when_a_log_is_closed_ends_no_other_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def close(descriptor: int) -> None:  # over the quota, which a file server says at the end
        closed.append(descriptor)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patched:
        patched.setattr(rank_log.os, "close", close)
        first = RankLog(tmp_path / "a.log", lambda: True)
        first.line(b"x")
        first.close()
    assert len(closed) == 1 and not first.is_open
    os.close(closed[0])
    second = RankLog(tmp_path / "b.log", lambda: True)
    second.line(b"y")
    second.close()
    assert (tmp_path / "b.log").read_bytes() == b"y\n"


def test_a_log_that_is_open_gets_no_line_once_another_start_holds_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_log, "CHECK_SECONDS", 0.0)
    held = [True]
    log = RankLog(tmp_path / "rank.log", lambda: held[0])
    log.line(b"ours")
    written(log)
    held[0] = False
    log.line(b"too late")
    log.close()
    assert log.path.read_bytes() == b"ours\n"


def test_of_two_writers_the_second_to_rotate_leaves_the_firsts_old_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_log, "LOG_BYTES", 10)
    one, other = (RankLog(tmp_path / "rank.log", lambda: True) for _ in range(2))
    for log in (one, other):
        log.line(b"over ten bytes")
        written(log)
    one.line(b"one")
    written(one)
    other.line(b"other")
    written(other)
    one.close(), other.close()
    assert (tmp_path / "rank.log.1").read_bytes() == b"over ten bytes\n" * 2
    assert (tmp_path / "rank.log").read_bytes() == b"one\nother\n"


def written(log: RankLog) -> None:
    deadline = time.monotonic() + 10
    while log._held:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.05)  # from the queue into the file


@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        (b"10 %\r20 %\r", b"20 %"),
        (b"10 %\r\x1b[2K\x1b[1m20 %\x1b[0m", b"20 %"),
        (b"done\r\x1b[K", b""),
        (b"x" * 1_000_000, b"x" * 1_000_000),  # in a time that grows with its length, not with its square
    ],
    ids=["progress", "style", "cleared", "long"],
)
def test_of_a_progress_line_what_was_drawn_last_is_kept(printed: bytes, kept: bytes, tmp_path: Path) -> None:
    log = RankLog(tmp_path / "rank.log", lambda: True)
    log.line(printed)
    log.close()
    assert log.path.read_bytes() == kept + b"\n"
