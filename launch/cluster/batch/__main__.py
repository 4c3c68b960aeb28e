"""`python -P -m launch.cluster.batch FOLDER [asked]`: what a submission's batch script starts. `asked`: SLURM
has told the job to save already.
"""

import contextlib
import os
import resource
import signal
import sys
from pathlib import Path

from common.exit_codes import FAILED, WRONG
from common.standard_error import complain, forgive
from launch.cluster import submission as records
from launch.cluster.batch.allocation import Allocation
from launch.cluster.batch.guard import guarded
from launch.cluster.batch.job_output import written_by_a_thread
from launch.cluster.batch.journal import Journal
from launch.cluster.batch.run_disk import RunDisk
from launch.cluster.batch.step import ASKED
from launch.cluster.batch.supervision import Supervision
from launch.local.signal_inbox import SignalInbox
from parallel.world.slurm import expand
from trainer.process.ending import run_to_the_end


def main(arguments: list[str]) -> int:
    """Supervise the ranks of the submission in the folder `arguments` names; return the job's exit code."""
    signals = SignalInbox(ASKED)  # first: a signal that comes while Python imports would end the job
    try:
        with written_by_a_thread():
            return _main(arguments, signals)
    finally:
        signals.stop_waking()


def _main(arguments: list[str], signals: SignalInbox) -> int:
    try:
        if arguments[1:] not in ([], ["asked"]) or not arguments:
            return complain("usage: python -P -m launch.cluster.batch FOLDER, in a SLURM job", WRONG)
        if arguments[1:]:
            os.kill(os.getpid(), signal.SIGUSR1)
        submission = records.read(arguments[0])
        job, nodes = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_JOB_NODELIST", "")
        if not job or not nodes:
            return complain("not in a SLURM job: SLURM_JOB_ID or SLURM_JOB_NODELIST is not set", WRONG)
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        allocation = Allocation(job, int(restarts) if restarts.isdecimal() else 0, tuple(expand(nodes)))
        os.chdir(submission.workdir)
        from trainer.config import reading

        cfg = reading.load(submission.config)
        disk = RunDisk(Path(submission.run_folder), signals)
        journal = Journal(submission, job, cfg.supervise.notify, disk)
        try:
            with guarded(submission, allocation):
                return Supervision(submission, cfg, allocation, signals, os.environ, journal, disk).run()
        finally:
            journal.close()
    except ValueError as error:
        return complain(error, WRONG)
    except OSError as error:  # a disk that is away at the start
        return complain(error, FAILED)


if __name__ == "__main__":
    forgive()
    with contextlib.suppress(ValueError, OSError):  # for the ranks' logs: the soft limit is for select(2)
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    run_to_the_end(lambda: main(sys.argv[1:]))
