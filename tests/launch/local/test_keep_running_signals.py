"""Signals to a supervisor that starts its ranks again. The ranks are small scripts."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from common.processes import stat
from kept_running import start
from supervised import alive, children

ENDS = [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
WAITS = "print('up', file=sys.stderr, flush=True); time.sleep(60)"


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_a_request_to_stop_between_two_starts_ends_the_run(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with start(run, "hold(); step(start); die()", wait=60.0, trapped=True) as parent:
        assert parent.stderr is not None
        parent.stderr.readline(), parent.stderr.readline()
        time.sleep(0.3)
        parent.send_signal(number)
        _, err = parent.communicate(timeout=20)
    how = "interrupted" if code == 130 else "asked to stop"
    said = f"error: {how} before the next start: nothing is saved: the same command begins anew\n"
    assert (parent.returncode, err) == (code, said)


def test_neither_a_terminals_new_size_nor_ctrl_z_ends_the_wait_for_the_next_start(tmp_path: Path) -> None:
    with start(tmp_path / "run", "hold(); step(start); die() if start < 3 else None", wait=3.0) as parent:
        assert parent.stderr is not None
        parent.stderr.readline(), parent.stderr.readline()
        for number in (signal.SIGWINCH, signal.SIGTSTP):
            parent.send_signal(number)
        until(lambda: state(parent.pid) == "T")
        parent.send_signal(signal.SIGCONT)
        _, err = parent.communicate(timeout=20)
    assert (parent.returncode, err) == (0, "")
    assert (tmp_path / "starts-0").read_text() == "xxx"


def test_requests_to_stop_while_the_end_is_told_change_nothing(tmp_path: Path) -> None:
    """SIGTERM every few milliseconds, from the ranks' end until that of the process."""
    tell = f"{sys.executable} -c 'import time; time.sleep(0.5)'"
    leaves = "hold(); step(7); save(7); print('saved', file=sys.stderr, flush=True); sys.exit(75)"
    with start(tmp_path / "run", leaves, notify=tell) as parent:
        assert parent.stderr is not None and parent.stderr.readline() == "saved\n"
        until(lambda: not children(parent.pid))
        while parent.poll() is None:
            parent.send_signal(signal.SIGTERM)
            parent.send_signal(signal.SIGUSR1)
            time.sleep(0.002)
        _, err = parent.communicate(timeout=20)
    assert (parent.returncode, err) == (75, "")


def test_slurms_burst_of_signals_to_supervisor_and_ranks_at_once_saves_and_leaves(tmp_path: Path) -> None:
    """SIGTERM, SIGCONT, SIGTERM to every process of the job, the supervisor's among them."""
    polite = """
def leave(number, frame):
    time.sleep(0.5); save(7); sys.exit(75)
signal.signal(signal.SIGTERM, leave)
hold(); step(7)
"""
    with start(tmp_path / "run", polite + WAITS) as parent:
        assert parent.stderr is not None and parent.stderr.readline() == "up\n"
        for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGTERM):
            for pid in (parent.pid, *children(parent.pid)):
                os.kill(pid, number)
            time.sleep(0.005)
        _, err = parent.communicate(timeout=20)
    assert (parent.returncode, err) == (75, "")
    assert (tmp_path / "run/checkpoints/step-000000007").is_dir()


@pytest.mark.parametrize("saved", [0, 30])
def test_a_rank_killed_after_a_request_names_the_checkpoint_or_says_that_there_is_none(
    saved: int, tmp_path: Path
) -> None:
    stubborn = """
signal.signal(signal.SIGTERM, lambda *_: die())
hold(); step(31)
"""
    stubborn += f"save({saved})\n" if saved else ""
    with start(
        tmp_path / "run", stubborn + "print('up', file=sys.stderr, flush=True); time.sleep(60)"
    ) as parent:
        assert parent.stderr is not None and parent.stderr.readline() == "up\n"
        parent.terminate()
        _, err = parent.communicate(timeout=20)
    at = tmp_path / "run/checkpoints/step-000000030"
    after = f"the same command goes on from step 30: {at}" if saved else "nothing is saved: the same command"
    assert parent.returncode == 1
    assert err.startswith(f"error: asked to stop, and killed before the state was saved; {after}")


def test_ctrl_z_stops_the_ranks_too(tmp_path: Path) -> None:
    with start(
        tmp_path / "run", "hold(); print('up', file=sys.stderr, flush=True); time.sleep(60)"
    ) as parent:
        assert parent.stderr is not None and parent.stderr.readline() == "up\n"
        (rank,) = children(parent.pid)

        def states() -> set[str]:
            return {state(pid) for pid in (parent.pid, rank)}

        parent.send_signal(signal.SIGTSTP)
        until(lambda: states() == {"T"})
        parent.send_signal(signal.SIGCONT)
        until(lambda: "T" not in states())
        parent.kill()
    until(lambda: not alive(rank))


def state(pid: int) -> str:
    found = stat(pid)
    return found.state if found else ""


def until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


HANGS = "hold(); step(7); (folder / 'metrics.jsonl').unlink(); os.mkfifo(folder / 'metrics.jsonl'); "


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_a_request_to_stop_is_answered_while_the_run_folder_hangs(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    with start(tmp_path / "run", HANGS + "print('up', file=sys.stderr, flush=True); die()") as parent:
        assert parent.stderr is not None and parent.stderr.readline() == "up\n"
        until(lambda: not children(parent.pid))
        time.sleep(0.3)
        assert parent.poll() is None
        parent.send_signal(number)
        _, err = parent.communicate(timeout=20)
    how = "interrupted" if code == 130 else "asked to stop"
    assert parent.returncode == code
    assert err.startswith(f"error: {how} before the next start: {tmp_path}/run has not answered for ")
