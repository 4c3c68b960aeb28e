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
sys.exit(75 if asked else 3)
"""


def start(folder: Path, seconds: float = 20.0) -> "subprocess.Popen[bytes]":
    script, step = folder / "script.sh", folder / "step"
    script.write_text(TEXT)
    step.write_text(STEP.format(python=sys.executable))
    for file in (script, step):
        file.chmod(0o755)
    env = {**os.environ, "RECORD": str(folder), "BASH_FUNC_module%%": MODULE}
    env["SECONDS_AT_MOST"] = str(seconds)
    return subprocess.Popen([script, "FOLDER", step, "", "cuda"], env=env, process_group=0)


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["module", "began", "ready"])
def test_a_request_to_save_reaches_the_batch_step(moment: str, number: int, tmp_path: Path) -> None:
    """While modules load, while Python starts, and afterwards."""
    with start(tmp_path) as script:
        wait_until((tmp_path / moment).exists)
        script.send_signal(number)
        assert script.wait(30) == 75
    assert (tmp_path / "ready").exists()


def test_requests_may_come_any_number_of_times(tmp_path: Path) -> None:
    with start(tmp_path) as script:
        wait_until((tmp_path / "module").exists)  # before bash itself has begun nothing can help
        for _ in range(4):  # SLURM: a warning, and TERM at the limit or of scancel, which a user may repeat
            script.send_signal(signal.SIGUSR1)
            script.send_signal(signal.SIGTERM)
            time.sleep(0.4)
        assert script.wait(60) == 75


def test_the_exit_code_is_that_of_the_batch_step(tmp_path: Path) -> None:
    with start(tmp_path, seconds=0.1) as script:
        assert script.wait(30) == 3
