"""Watches the node on which the batch step runs, from the job's other nodes.

A job that goes on without a lost node (--no-kill) also goes on without its batch step: seen with SLURM 22.05,
it holds its other nodes, and nobody starts a rank there, until the time limit. So some of the other nodes
have a guard, which asks SLURM whether the job still has the node, and else puts the job back into the queue.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launch.cluster import submission as records
from launch.cluster.batch.allocation import Allocation
from launch.cluster.batch.step import EXPORT
from launch.cluster.submission import Note, Submission
from parallel.world.slurm import expand

EVERY_SECONDS = 10.0
MOST_GUARDS = 3  # so many nodes are hardly lost at the same time, and each guard asks SLURM's controller
END_SECONDS = 5.0


@contextlib.contextmanager
def guarded(submission: Submission, allocation: Allocation) -> Iterator[None]:
    """Inside the block, guards run on other nodes of a job that outlives the loss of a node."""
    host = os.environ.get("SLURMD_NODENAME", "")
    others = [node for node in allocation.nodes if node != host][:MOST_GUARDS]
    if not submission.cluster.spare_nodes or not others:
        yield
        return
    words = [
        *(
            "srun",
            "--overlap",
            "--mem=0",
            "--no-kill",
            "--kill-on-bad-exit=0",
            "--input=none",
            "--output=none",
            EXPORT,
        ),
        *(f"--nodes={len(others)}", f"--ntasks={len(others)}", "--ntasks-per-node=1", "--cpus-per-task=1"),
        f"--nodelist={','.join(others)}",
        *(submission.python, "-P", "-m", "launch.cluster.batch.guard"),
        *(submission.folder, allocation.job, host),
    ]
    # A new session: the signals to the batch step are not the guards'.
    step = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        step.terminate()
        try:
            step.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            step.kill()
            step.wait()


def main(folder: str, job: str, host: str) -> int:
    """Watch `host` for as long as the job runs; requeue the job where it goes on without the host."""
    allocation = Allocation(job, 0, ())
    time.sleep(int(os.environ.get("SLURM_PROCID", "0")))  # the guards need not ask at the same moment
    while True:
        now = allocation.state()
        if now.state and now.state != "RUNNING":
            return 0
        nodes = expand(now.nodes)
        if nodes and host not in nodes:
            if allocation.requeue() == "":
                reason = f"{host}, on which the batch step ran, was lost: requeued"
                # Attempt 1, not 0: this job has noted its first start itself.
                records.note(Path(folder), Note(time.time(), job, "requeue", reason, attempt=1))
            return 0
        time.sleep(EVERY_SECONDS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
