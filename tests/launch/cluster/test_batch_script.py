"""The text of the batch script, run by a real bash: a request to save is never lost, whenever it comes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cluster.script import TEXT

MODULE = """() { touch "$RECORD/module"; sleep 0.5; }"""
ENDS = """#!{python} -S
import os, pathlib, time
pathlib.Path(os.environ["RECORD"], "began").touch()
time.sleep(0.15)
os._exit(75)
"""
# In the place of the batch step: it begins slowly, waits for a request, and takes its time to answer.
STEP = """#!{python}
import os, pathlib, signal, sys, time
record = pathlib.Path(os.environ["RECORD"])
(record / "began").touch()
time.sleep(0.5)
asked = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))
(record / "ready").touch()
deadline = time.monotonic() + float(os.environ["SECONDS_AT_MOST"])
while not asked and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.2)
os._exit(75 if asked else 3)  # as `run_to_the_end`: Python's own end would give the signals back
"""


def start(folder: Path, *modules: str, seconds: float = 20.0, text: str = STEP) -> "subprocess.Popen[str]":
    script, step = folder / "script.sh", folder / "step"
    script.write_text(TEXT)
    step.write_text(text.format(python=sys.executable))
    for file in (script, step):
        file.chmod(0o755)
    env = {**os.environ, "RECORD": str(folder), "BASH_FUNC_module%%": MODULE}
    env["SECONDS_AT_MOST"] = str(seconds)
    command = [script, "FOLDER", step, "", *modules]
    return subprocess.Popen(command, env=env, process_group=0, stderr=subprocess.PIPE, text=True)


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["module", "began", "ready"])
def test_a_request_to_save_reaches_the_batch_step(moment: str, number: int, tmp_path: Path) -> None:
    """While modules load, while Python starts, and afterwards."""
    with start(tmp_path, "cuda") as script:
        wait_until((tmp_path / moment).exists)
        script.send_signal(number)
        assert script.wait(30) == 75
    assert (tmp_path / "ready").exists()


def test_requests_may_come_any_number_of_times(tmp_path: Path) -> None:
    """SLURM sends a warning, and TERM at the limit or of scancel, which a user may repeat."""
    with start(tmp_path, "cuda") as script:
        wait_until((tmp_path / "module").exists)  # before bash itself has begun nothing can help
        ends_at = time.monotonic() + 2.0
        while script.poll() is None or time.monotonic() < ends_at:
            for number in (signal.SIGUSR1, signal.SIGTERM):
                script.send_signal(number)
                time.sleep(0.005)
        assert script.returncode == 75
        assert script.communicate()[1] == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs one core for all processes")
def test_requests_that_come_as_the_batch_step_ends_leave_its_exit_code(tmp_path: Path) -> None:
    """Where a signal comes just when bash's `wait` collects a process, bash loses its exit code: 18 of 25."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # bash then often runs some time after the step has ended
    try:
        for number in range(5):
            folder = tmp_path / str(number)
            folder.mkdir()
            with start(folder, text=ENDS) as script:
                wait_until((folder / "began").exists)
                while script.poll() is None:
                    script.send_signal(signal.SIGUSR1)
                    time.sleep(0.0005)
                    script.send_signal(signal.SIGTERM)
                    time.sleep(0.0005)
                assert (script.returncode, script.communicate()[1]) == (75, "")
    finally:
        os.sched_setaffinity(0, cores)


def test_the_exit_code_is_that_of_the_batch_step(tmp_path: Path) -> None:
    with start(tmp_path, seconds=0.1) as script:
        assert script.wait(30) == 3


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "script.sh").write_text(TEXT)
    command = ["bash", tmp_path / "script.sh", "FOLDER", "/no/such/python", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 127 and "/no/such/python: No such file or directory" in done.stderr


def test_what_the_batch_step_prints_comes_out(tmp_path: Path) -> None:
    step = tmp_path / "step"
    step.write_text("#!/bin/sh\necho out; echo err >&2; cat; exit 7\n")
    step.chmod(0o755)
    (tmp_path / "script.sh").write_text(TEXT)
    command = ["bash", tmp_path / "script.sh", "FOLDER", step, ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, input="not for it")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
