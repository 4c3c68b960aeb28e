"""Who may write to a run folder, and leaving before there is anything to write."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.lock import FolderLock, locked


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    held = FolderLock.take(tmp_path)
    with pytest.raises(BlockingIOError, match=rf"{tmp_path} is in use by process {os.getpid()} on .*another"):
        FolderLock.take(tmp_path, patience_seconds=0.1)
    held.release()
    FolderLock.take(tmp_path, patience_seconds=0.0).release()


def test_the_kernel_frees_what_a_killed_run_held(tmp_path: Path) -> None:
    hold = f"import time; from pathlib import Path; from common.lock import FolderLock; lock = FolderLock.take(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=f"process {other.pid} on"):
            FolderLock.take(tmp_path, patience_seconds=0.0)
        other.kill()
        FolderLock.take(tmp_path).release()  # within its patience: no need to wait for the death


def test_a_lock_is_waited_for_until_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hold = f"import time; from pathlib import Path; from common.lock import locked\nwith locked(Path({str(path)!r})): print('held', flush=True); time.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), locked(path, patience_seconds=0.0):
            pass
        threading.Timer(0.1, other.kill).start()
        with locked(path):
            other.wait()
    with locked(path, patience_seconds=0.0):
        pass


@pytest.mark.parametrize(
    ("number", "code", "why"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "asked to stop")],
    ids=["int", "term"],
)
def test_leaving_before_the_first_step_is_one_line(number: int, code: int, why: str) -> None:
    start = f"import os; from trainer.process.interrupts import LeaveAtOnce; LeaveAtOnce('the first step').begin(); os.kill(os.getpid(), {int(number)}); 1 / 0"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", start],
        capture_output=True,
        text=True,
        check=False,
        # A suite that a script runs in the background has SIGINT ignored, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == code
    assert done.stderr == f"error: {why} before the first step: nothing was under way\n"
