"""What signals do to a process, whatever it inherited."""

import signal
import subprocess
import sys
from collections.abc import Callable

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


def test_ctrl_c_that_a_background_job_ignores_stays_ignored() -> None:
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    assert run(f"os.kill(os.getpid(), {int(signal.SIGINT)})", ignore) == (0, "")


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
