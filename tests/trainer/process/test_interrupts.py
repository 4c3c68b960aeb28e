"""What signals do to a process, whatever it inherited."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.local.signal_inbox import SignalInbox

ANSWER = """
import os, signal, time
from trainer.process.interrupts import LeaveAtOnce
signals = LeaveAtOnce("the first step").begin()
"""


def run(script: str, before: Callable[[], object]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", ANSWER + script],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: before() and None,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_stop_is_answered_though_it_was_inherited_as_ignored(number: signal.Signals) -> None:
    """`trap '' USR1` in a batch script."""
    ignore = lambda: signal.signal(number, signal.SIG_IGN)  # noqa: E731
    code, said = run(f"os.kill(os.getpid(), {int(number)}); time.sleep(30)", ignore)
    assert (code, said) == (75, "error: asked to stop before the first step: nothing was under way\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_a_background_job_or_nohup_ignores_stays_ignored(number: signal.Signals) -> None:
    ignore = lambda: signal.signal(number, signal.SIG_IGN)  # noqa: E731
    assert run(f"os.kill(os.getpid(), {int(number)})", ignore) == (0, "")


def test_a_terminal_that_is_closed_is_a_request_to_stop() -> None:
    default = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731
    code, said = run("os.kill(os.getpid(), signal.SIGHUP); time.sleep(30)", default)
    assert (code, said) == (75, "error: asked to stop before the first step: nothing was under way\n")


def test_the_first_ctrl_c_is_answered_by_one_rank_and_other_requests_are_not() -> None:
    script = """
signals.save_first(lambda: None, lambda: "", tells={tells})
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGINT):
    os.kill(os.getpid(), number)
"""
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    line = "stopping after this step: saving; a second Ctrl-C leaves at once without saving\n"
    assert run(script.format(tells=True), default) == (0, line)
    assert run(script.format(tells=False), default) == (0, "")


def test_leaving_before_the_first_step_of_a_later_start_names_the_checkpoint(tmp_path: Path) -> None:
    at = tmp_path / "checkpoints/step-000000120"
    at.mkdir(parents=True)
    script = f"""
from pathlib import Path
from trainer.checkpoint.folder import before_first_step
signals.would_lose(before_first_step(Path({str(tmp_path)!r})))
os.kill(os.getpid(), signal.SIGTERM)
"""
    told = f"before the first step of this start: the same command goes on from step 120: {at}"
    assert run(script, lambda: None) == (75, f"error: asked to stop {told}\n")


def test_requests_to_stop_are_one_and_a_second_ctrl_c_says_where_the_run_is_saved() -> None:
    script = """
asked = []
signals.save_first(lambda: asked.append(1), lambda: "the same command goes on from step 40")
for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGINT):
    os.kill(os.getpid(), number)
assert signals.asked == signal.SIGTERM
time.sleep(0.6)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(30)
"""
    code, said = run(script, lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert (code, said) == (130, "error: interrupted again: the same command goes on from step 40\n")


def test_what_a_command_had_under_way_is_not_denied() -> None:
    script = """
signals.end()
LeaveAtOnce("the end", lost="").begin()
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert run(script, lambda: None) == (75, "error: asked to stop before the end\n")


def test_the_inbox_takes_a_request_to_stop_that_was_ignored() -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGINT)}
    try:
        inbox = SignalInbox(before)
        for number in before:
            signal.raise_signal(number)
        assert inbox.take() == [signal.SIGUSR1]
        inbox.close()
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
