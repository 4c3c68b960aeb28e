"""Runs a job on this machine, at once."""

import contextlib
import os
import pdb
import runpy
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import NoReturn

from launch.job import Job, ProcessCommand
from launch.local.rank_commands import rank_commands
from launch.local.supervisor import supervise
from trainer.process.interrupts import hold


def run_job(job: Job) -> int:
    """Run the job's ranks; return the exit code.

    A single rank replaces this process: it has the terminal and the signals to itself, as if started by hand.
    Several ranks are supervised by this process.
    """
    if job.nproc == 1:
        become(*_commands(job))
    return run_as_children(job)


def run_as_children(job: Job) -> int:
    """Run the job's ranks as children of this process; return the exit code."""
    with _rendezvous_file() as file:
        return supervise(_commands(job, f"file://{file}"))


@contextlib.contextmanager
def _rendezvous_file() -> Iterator[str]:
    """Yield the path of a file, for this run alone, at which its ranks meet.

    On Linux the file is in no folder: it ends with this process, however this process ends.
    """
    if sys.platform == "linux":
        with open(os.memfd_create("rendezvous"), "rb") as file:
            yield f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory(prefix="germinal-") as folder:
            yield f"{folder}/rendezvous"


def become(command: ProcessCommand) -> NoReturn:
    """Replace this process by `command`."""
    sys.stdout.flush()
    sys.stderr.flush()
    hold()  # signals that arrive during execve wait until the new program handles them
    os.execve(command.argv[0], command.argv, os.environ | command.env)


def debug(job: Job) -> int:
    """Run the job as one rank in this very process, so that `breakpoint()` and pdb have the terminal.

    An exception that nobody handles opens pdb where it was raised, if there is a terminal to type on.
    """
    (command,) = _commands(job)
    os.environ.update(command.env)
    return run_module(job.module, *job.arguments)


def run_module(module: str, *arguments: str) -> int:
    """Run `module` in this process as `python -m` would; return its exit code."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except Exception as error:
        traceback.print_exception(error)
        if sys.stdin.isatty():
            pdb.post_mortem(error.__traceback__)
        return 1
    return 0


def _commands(job: Job, rendezvous: str = "") -> list[ProcessCommand]:
    return rank_commands(job, rendezvous=rendezvous, environ=os.environ)
