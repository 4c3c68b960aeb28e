"""`germinal cancel`: take a run out of the queue, or have it save and end."""

import argparse
import os
import signal
from typing import TYPE_CHECKING

from launch import options
from launch.look.status import RUN

if TYPE_CHECKING:
    from launch.cluster.slurm import QueuedJob
    from launch.cluster.submission import SentJob


def add_command(add: options.AddCommand) -> None:
    parser = add("cancel", "take a run out of the queue; one that runs saves first, and ends")
    parser.add_argument("folder", metavar="RUN", help=RUN)
    now = "do not let it save: what came after the last checkpoint is lost"
    parser.add_argument("--now", action="store_true", help=now)
    parser.set_defaults(run=cancel)


def cancel(args: argparse.Namespace) -> int:
    """Cancel every job of the run that waits or runs; say what was done with each."""
    from launch.cluster import state, submission

    folder = state.find(args.folder, os.environ)
    queue = state.jobs(folder, os.environ)
    if not queue.live:
        if queue.problem:
            raise RuntimeError(f"{folder}: {queue.problem}")
        if state.statuses([folder], os.environ)[0].state == "done":
            print(f"{folder.name}: done, nothing to cancel")
            return 0
        raise RuntimeError(f"{folder}: no job of this run waits or runs; see `germinal status {args.folder}`")
    sent = {job.job: (at, job) for at in submission.folders(folder) for job in submission.jobs(at)}
    for job in queue.live:  # first: none of them may start the ranks again
        submission.ask_to_cancel(sent[job.job][0])
    processes = [sent[job.job][1] for job in queue.live if sent[job.job][1].host]
    _cancel_processes(processes, now=args.now)
    _cancel_jobs([job for job in queue.live if not sent[job.job][1].host], now=args.now)
    return 0


def _cancel_processes(processes: "list[SentJob]", *, now: bool) -> None:
    from launch.cluster import detached

    for process in processes:
        detached.ask_to_stop(process, signal.SIGKILL if now else signal.SIGTERM)
        print(f"process {process.job}: {'killed' if now else 'saves and ends'}")


def _cancel_jobs(jobs: "list[QueuedJob]", *, now: bool) -> None:
    from launch.cluster import slurm

    waiting = [job.job for job in jobs if now or job.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD")]
    running = [job.job for job in jobs if job.job not in waiting]
    if waiting:
        slurm.cancel(waiting, os.environ)
        print(f"job {', '.join(waiting)}: cancelled")
    if running:
        slurm.cancel(running, os.environ, batch_signal="TERM")
        print(f"job {', '.join(running)}: saves and ends; --now ends it at once")
