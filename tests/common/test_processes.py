"""What the kernel tells of a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.processes import boot_id, stat

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state(pid: int) -> str:
    found = stat(pid)
    return found.state if found else ""


def test_the_states_of_a_process_whose_name_has_parentheses_and_no_utf_8(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/a) Z (\xff"
    os.symlink("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as child:
        try:
            until(lambda: state(child.pid) == "S")
            os.kill(child.pid, signal.SIGSTOP)
            until(lambda: state(child.pid) == "T")
        finally:
            child.kill()
        until(lambda: state(child.pid) == "Z")
        ended = stat(child.pid)
        assert ended is not None and ended.has_ended
    assert stat(child.pid) is None


def test_a_process_keeps_its_beginning_and_a_later_one_has_another() -> None:
    mine = stat(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as child:
        later = stat(child.pid)
        child.kill()
    assert mine is not None and later is not None
    assert later.began_ticks >= mine.began_ticks == stat(os.getpid()).began_ticks  # type: ignore[union-attr]
    seconds = mine.began_ticks / os.sysconf("SC_CLK_TCK")
    assert 0 < seconds < time.clock_gettime(time.CLOCK_BOOTTIME)


def test_the_machines_start_has_a_name() -> None:
    assert boot_id() == boot_id() != ""
