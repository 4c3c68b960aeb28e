"""`--backend local`: a run on this machine, away from the terminal, with the same commands as on a cluster.

The job is a process in a session of its own, `python -m launch.cluster.detached FOLDER`. It starts
`germinal train`, which supervises the ranks, passes SIGTERM on to it, and notes how it ended.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from common.exit_codes import DONE, INTERRUPTED, STOPPED
from launch.cluster import submission
from launch.cluster.submission import Ending, Note, SentJob, Submission
from launch.supervise.process import begin
from parallel.world.slurm import clean

LOG = "log-local.txt"
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def start(sub: Submission) -> None:
    """Start the job of a submission, and remember it."""
    folder = Path(sub.folder)
    env = clean(os.environ) | sub.cluster.env
    if sub.code:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (sub.code, env.get("PYTHONPATH", ""))))
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sub.python, "-P", "-m", "launch.cluster.detached", sub.folder],
            cwd=sub.workdir,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    submission.add_job(folder, str(process.pid), host=socket.gethostname(), started=begin(process.pid))


def is_alive(job: SentJob) -> bool | None:
    """Whether the process of the job runs; None where that cannot be seen from this machine."""
    if job.host != socket.gethostname():
        return None
    return begin(int(job.job)) == job.started != ""


def ask_to_stop(job: SentJob, number: int = signal.SIGTERM) -> None:
    """Send a signal to the job, if it runs; SIGKILL to all of its processes."""
    if is_alive(job):
        send = os.killpg if number == signal.SIGKILL else os.kill
        send(int(job.job), number)


def main(folder: str) -> int:
    """Run the job in this process, and note how it ends; return the exit code of `germinal train`."""
    sub = submission.read(folder)
    asked: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        for child in children:
            child.send_signal(number)

    for number in STOPS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # held back since before this process began
    place, job, nodes = Path(folder), str(os.getpid()), [socket.gethostname()]
    words = [
        sys.executable,
        "-P",
        "-m",
        "launch.cli",
        "train",
        sub.config,
        "--nproc",
        str(sub.cluster.nproc),
    ]
    submission.note(place, Note(time.time(), job, "start", attempt=1, nodes=nodes))
    children.append(subprocess.Popen(words))
    for early in asked:  # what came before there was a child
        children[0].send_signal(early)
    code = children[0].wait()
    if -code in asked:  # a signal ended it, and so it did not handle signals yet: nothing was under way
        code = STOPPED
    code = 128 - code if code < 0 else code
    reason = {DONE: "done", STOPPED: "stopped on request", INTERRUPTED: "interrupted"}.get(
        code, f"`germinal train` ended with exit code {code}: see `germinal logs {sub.run}`"
    )
    submission.note(place, Note(time.time(), job, "end", reason, code, attempt=1, nodes=nodes))
    submission.end(place, Ending(time.time(), job, code, reason))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
