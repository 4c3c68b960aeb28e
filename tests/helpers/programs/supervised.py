"""Ranks as scripts under `launch.local.supervisor.supervise`, in a process of its own."""

import subprocess
import sys
from pathlib import Path

from common.processes import stat

# The parent: supervises one rank for each script that it is given.
PARENT = """
import signal, sys
from launch.job import ProcessCommand
from launch.local.supervisor import supervise
grace, stop, *scripts = sys.argv[1:]
answers = "import signal; signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())\\n"
ranks = [ProcessCommand((sys.executable, "-c", answers + script)) for script in scripts]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in a script's background ignores it
sys.exit(supervise(ranks, grace_seconds=float(grace), stop_seconds=float(stop)).show_error())
"""
SLEEP = "import time; time.sleep(60)"
# Said by a rank whose first step is done: from then on, all may leave, each in its time.
UNDER_WAY = "import os; os.write(int(os.environ['GERMINAL_UNDER_WAY']), b'{rank}\\n')\n"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
POLITE = """
import os, signal, sys, time
def leave(number, frame):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
os.write(1, b"up\\n")  # a print is under way still when its reader answers: no second one then
time.sleep(60)
"""


def start(*scripts: str, grace: float = 5.0, stop: float = 20.0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(grace), str(stop), *scripts],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*scripts: str, grace: float = 5.0) -> tuple[int, str, str]:
    with start(*scripts, grace=grace) as parent:
        out, err = parent.communicate(timeout=30)
    return parent.returncode, out, err


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def alive(pid: int) -> bool:
    found = stat(pid)
    return found is not None and not found.has_ended
