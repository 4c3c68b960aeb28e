"""Signals to several processes as one program: passed on once, answered in time, no orphan."""

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from launch.local.ended import StopRequests, _ended_by_signal
from supervised import PARENT, POLITE, SLEEP, STUBBORN, UNDER_WAY, alive, children, finish, start
from trainer.checkpoint.folder import goes_on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_reaches_every_rank_and_75_comes_back(number: signal.Signals) -> None:
    script = POLITE.replace("SIGTERM", number.name)
    with start(*(UNDER_WAY.format(rank=rank) + script for rank in (0, 1))) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        assert parent.stdout.readline() == "up\n"
        assert parent.stderr.readline() == "[rank 1] up\n"
        parent.send_signal(number)
        out, err = parent.communicate(timeout=20)
    assert (parent.returncode, out, err) == (75, "saved\n", "[rank 1] saved\n")


def test_a_second_interrupt_kills_and_a_second_request_to_stop_does_not() -> None:
    with start(STUBBORN, STUBBORN, grace=60.0) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        parent.stdout.readline(), parent.stderr.readline()
        for _ in range(3):  # as SLURM does: the request is the same
            parent.send_signal(signal.SIGTERM)
        parent.send_signal(signal.SIGINT)
        parent.send_signal(signal.SIGINT)  # of the same key press
        time.sleep(1.0)
        assert parent.poll() is None
        parent.send_signal(signal.SIGINT)
        parent.communicate(timeout=20)
    assert parent.returncode == 130


ASKED = "import sys; print('error: asked to stop: nothing was under way', file=sys.stderr); sys.exit({code})"


@pytest.mark.parametrize("code", [75, 130])
def test_a_rank_that_leaves_before_all_are_under_way_takes_the_others_along(code: int) -> None:
    """What the others then say is of its doing."""
    effect = "import sys, time; time.sleep(0.5); print('error: peer gone', file=sys.stderr); sys.exit(1)"
    result, _, err = finish(effect, ASKED.format(code=code), SLEEP, grace=3.0)
    assert (result, err) == (code, "error: asked to stop: nothing was under way\n")


def test_ranks_that_are_under_way_leave_together_each_in_its_time() -> None:
    begin = UNDER_WAY + "import sys, time; "
    scripts = [begin.format(rank=rank) + f"time.sleep({2 * rank}); sys.exit(75)" for rank in (0, 1)]
    scripts[1] = scripts[1].replace("sys.exit", "print('told the tracker'); sys.exit")
    assert finish(*scripts, grace=0.3) == (75, "", "[rank 1] told the tracker\n")


def test_a_rank_that_sigterm_ends_before_it_can_answer_was_asked_to_stop() -> None:
    code, _, err = finish(SLEEP, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert (code, err) == (75, "error: asked to stop before the first step: nothing was under way\n")


def test_a_stopped_rank_is_woken_to_answer() -> None:
    with start(*(UNDER_WAY.format(rank=rank) + POLITE for rank in (0, 1))) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        assert parent.stdout.readline() == "up\n"
        assert parent.stderr.readline() == "[rank 1] up\n"
        for child in children(parent.pid):
            os.kill(child, signal.SIGSTOP)
        time.sleep(0.3)
        parent.terminate()
        assert parent.wait(timeout=10) == 75


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_rank_that_does_not_answer_a_request_to_stop_is_killed_and_named(number: signal.Signals) -> None:
    scripts = (POLITE.replace("sys.exit(75)", "time.sleep(60)"), STUBBORN)
    with start(*(script.replace("SIGTERM", number.name) for script in scripts), stop=1.0) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        assert parent.stdout.readline() == "up\n"
        assert parent.stderr.readline() == "[rank 1] up\n"
        began = time.monotonic()
        parent.send_signal(number)
        _, err = parent.communicate(timeout=15)
    assert parent.returncode == 1 and time.monotonic() - began < 10
    assert "error: asked to stop, and rank 0, 1 did not answer within 1 s: killed" in err


def test_ended_by_the_signal_before_it_could_answer_is_75() -> None:
    """A rank inside torch's rendezvous runs no handler: there was nothing to save."""
    with start(SLEEP, SLEEP) as parent:
        while len(children(parent.pid)) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        parent.terminate()
        _, err = parent.communicate(timeout=15)
    assert parent.returncode == 75 and err.count("error: ") == 1 and "nothing was under way" in err


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    say_pid = f"import os, time; open(f'{tmp_path}/{{os.getpid()}}', 'w').close(); time.sleep(60)"
    with start(say_pid, say_pid) as parent:
        pids: list[int] = []
        deadline = time.monotonic() + 20
        while len(pids) < 2 and time.monotonic() < deadline:
            pids = [int(path.name) for path in tmp_path.iterdir()]
            time.sleep(0.02)
        assert len(pids) == 2
        parent.kill()
        parent.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def test_ranks_save_though_the_terminal_is_closed(tmp_path: Path) -> None:
    """SIGHUP comes, and every later write to the terminal fails."""
    script = POLITE.replace("SIGTERM", "SIGHUP").replace(
        "sys.exit(75)", f"print('x', file=sys.stderr); open({str(tmp_path / 'saved')!r}, 'w'); sys.exit(75)"
    )
    script = script.replace('print("saved", flush=True)', "time.sleep(0.3)")
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-c", PARENT, "5", "20", UNDER_WAY.format(rank=0) + script]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(command[0], command)
    assert os.read(terminal, 64).startswith(b"up")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert (tmp_path / "saved").exists()


def test_a_request_to_stop_while_ranks_start_again_names_the_checkpoint(tmp_path: Path) -> None:
    at = tmp_path / "checkpoints/step-000000120"
    at.mkdir(parents=True)
    code, line = _ended_by_signal(signal.SIGINT, StopRequests(600.0, arrived=[signal.SIGINT]), tmp_path)
    assert code == 130
    assert line == f"interrupted before the first step of this start: {goes_on(tmp_path)}" and str(at) in line
