"""Executes a job: the rest of `launch` only says what would be run."""

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
    """Run the job's ranks on this machine; returns the exit code.

    A single rank replaces this process: it has the terminal and the signals to itself, as if started by hand.
    Several meet at a file that no other run can know of, and are supervised.
    """
    if job.nproc == 1:
        become(*_commands(job))
    return run_as_children(job)


def run_as_children(job: Job) -> int:
    """Run the job's ranks on this machine as processes of their own; returns the exit code."""
    with _meeting_place() as file:
        return supervise(_commands(job, f"file://{file}"))


@contextlib.contextmanager
def _meeting_place() -> Iterator[str]:
    """A file that no other run can know of, and on Linux one without a name: it ends with this process,
    however that ends.
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
    hold()  # what comes while the program changes is for the next one
    os.execve(command.argv[0], command.argv, os.environ | command.env)


def debug(job: Job) -> int:
    """Run the job as one rank in this very process, so that `breakpoint()` and pdb have the terminal.

    An exception that nobody handles opens pdb where it was raised, if there is a terminal to type on.
    """
    (command,) = _commands(job)
    os.environ.update(command.env)
    return run_module(job.module, *job.arguments)


def run_module(module: str, *arguments: str) -> int:
    """Run `module` in this process as `python -m` would; returns its exit code."""
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
