"""A rank that has said why it fails says nothing more, however long its closing takes."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading, time
import torch
from parallel import runtime as runtimes
from parallel.world.presence import Left
runtimes.GRACE_SECONDS = runtimes.START_GRACE_SECONDS = 0.2
runtime = runtimes.Runtime(1, 2, 1, torch.device("cpu"))
runtime.has_said_why = sys.argv[1] == "said"
threading.Thread(target=runtime._left, args=(Left(0, None, "", False),), daemon=True).start()
time.sleep(60)  # it closes, and waits for rank 0
"""


@pytest.mark.parametrize("said", ["said", "silent"])
def test_another_ranks_end_is_told_once(said: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, said], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == (said == "silent")
