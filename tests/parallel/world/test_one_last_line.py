"""A rank that has said why it fails says nothing more, however long its closing takes."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading, time
import torch
from parallel.world import runtime as runtimes
from parallel.world.arrivals import Departure
runtimes.GRACE_SECONDS = runtimes.START_GRACE_SECONDS = 0.2
runtime = runtimes.Runtime(1, 2, 1, torch.device("cpu"))
runtime.has_reported = sys.argv[1] == "said"
threading.Thread(target=runtime._follow, args=(Departure(0, None, "", False),), daemon=True).start()
time.sleep(60)  # it closes, and waits for rank 0
"""


@pytest.mark.parametrize("said", ["said", "silent"])
def test_another_ranks_end_is_told_once(said: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, said], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == (said == "silent")
