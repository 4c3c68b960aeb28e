"""One step of the batch step, with a program in the place of srun: nothing that it prints is lost."""

import os
import sys
import time
from pathlib import Path

import pytest

from launch.cluster.batch.step import Placement, StepEnd, run_step
from launch.cluster.batch.step_output import StepOutput
from launch.local.rank_log import RankLog
from launch.local.signal_inbox import SignalInbox

WHERE = Placement(("n1", "n2"), nproc=2)
TRACEBACK = "import os; os.write(1, b'1: ' + b'x' * 40_000 + b'\\n');"
ENDS = f"{TRACEBACK} os.write(1, b'%s\\n'); os._exit(%d)"


class Slow(StepOutput):
    """Takes so long for the first lines that the step ends meanwhile."""

    def read(self, chunk: bytes) -> None:
        if not self._logs:
            time.sleep(0.5)
        super().read(chunk)


def step(folder: Path, program: str) -> StepEnd:
    output = Slow(4, lambda rank: RankLog(folder / f"{rank}.log", lambda: True))
    signals = SignalInbox([])
    try:
        command = [sys.executable, "-S", "-c", f"{TRACEBACK} import time; time.sleep(0.1); {program}"]
        return run_step(command, os.environ, WHERE, output, signals)
    finally:
        signals.close()
        output.close()


@pytest.mark.parametrize(
    ("line", "code", "end"),
    [
        # The others leave with 75 when one has failed, and srun's own code is the highest.
        ("srun: error: n2: task 3: Exited with exit code 1", 75, StepEnd(1, 3, "n2")),
        ("srun: error: n1: tasks 0-1: Killed", 137, StepEnd(-9, 0, "n1")),
        ("srun: error: Node failure on n2", 0, StepEnd(-9, 2, "n2", ("n2",))),
        ("0: done", 0, StepEnd(0)),
    ],
)
def test_what_srun_prints_last_is_read_after_its_end(line: str, code: int, end: StepEnd, tmp_path) -> None:
    assert step(tmp_path, ENDS % (line, code)) == end
    assert (tmp_path / "1.log").read_text().count("x") == 80_000


def test_a_process_that_keeps_the_output_open_does_not_keep_the_job(tmp_path: Path) -> None:
    last = "srun: error: n2: task 3: Exited with exit code 1"
    stays = f"import subprocess; subprocess.Popen(['sleep', '5']); {ENDS % (last, 75)}"
    began = time.monotonic()
    assert step(tmp_path, stays) == StepEnd(1, 3, "n2")
    assert time.monotonic() - began < 4  # the process stays for five
