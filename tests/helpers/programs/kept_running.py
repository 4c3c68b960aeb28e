"""Ranks as scripts under `launch.local.keep_running`, in a process of its own."""

import signal
import subprocess
import sys
from pathlib import Path

# Runs `keep_running` over scripts instead of ranks. A script finds helpers and `folder`, `start` (from 1).
PARENT = """
import sys
from pathlib import Path
from launch.job import Job, ProcessCommand
from launch.local import keep_running
from launch.supervise import policy
from trainer.config.sections import SuperviseConfig
from trainer.process.ending import run_to_the_end

class Config:
    folder, name, parallel, train = Path(sys.argv[1]), "run", None, None
    supervise = SuperviseConfig(restarts=int(sys.argv[2]), notify=sys.argv[4])

scripts = sys.argv[5:]
policy.WAITS = (0.0, float(sys.argv[3]))
commands = [ProcessCommand((sys.executable, "-c", script)) for script in scripts]
keep_running.rank_commands = lambda job, **more: commands
run_to_the_end(lambda: keep_running.keep_running(Job("c.yaml", nproc=len(scripts)), Config))
"""
RANK = """
import json, os, signal, socket, sys, time
from pathlib import Path
signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
folder, rank = Path({folder!r}), {rank}
count = folder.parent / f"starts-{{rank}}"
start = len(count.read_text()) + 1 if count.exists() else 1
count.write_text("x" * start)

def line(name, **record):
    with (folder / name).open("a") as file:
        file.write(json.dumps(record) + "\\n")

def hold():
    folder.mkdir(exist_ok=True)
    (folder / ".epoch").write_text(f"{{start}} aa process {{os.getpid()}} on {{socket.gethostname()}}\\n")
    line("events.jsonl", kind="start", step=0)

def step(number):
    line("metrics.jsonl", step=number, loss=1.0)
    os.write(int(os.environ["GERMINAL_UNDER_WAY"]), b"%d\\n" % rank)

def save(number):
    (folder / "checkpoints" / f"step-{{number:09d}}").mkdir(parents=True)

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    time.sleep(60)
"""


def start(
    folder: Path,
    *scripts: str,
    restarts: int = 3,
    wait: float = 0.0,
    trapped: bool = False,
    notify: str = "",
) -> "subprocess.Popen[str]":
    ranks = [RANK.format(folder=str(folder), rank=rank) + script for rank, script in enumerate(scripts)]

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if trapped:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), str(restarts), str(wait), notify, *ranks],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def finish(folder: Path, *scripts: str, restarts: int = 3) -> tuple[int, list[str]]:
    with start(folder, *scripts, restarts=restarts) as parent:
        _, err = parent.communicate(timeout=60)
    return parent.returncode, err.splitlines()
