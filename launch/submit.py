"""Executes a job: the rest of `launch` only says what would be run."""

import dataclasses
import os
import pdb
import runpy
import sys
import tempfile
import traceback
from typing import NoReturn

from launch.job import ONE_PROCESS, Command, Job
from launch.local import rank_commands
from launch.supervisor import supervise


def run(job: Job) -> int:
    """Run the job's ranks on this machine; returns the exit code.

    A single rank replaces this process: it has the terminal and the signals to itself, as if started by hand.
    Several meet at a file that no other run can know of, and are supervised.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if job.nproc == 1:
        become(*rank_commands(job, rendezvous="", cores=cores, environ=os.environ))
    with tempfile.TemporaryDirectory(prefix="germinal-") as folder:
        address = f"file://{folder}/rendezvous"
        return supervise(rank_commands(job, rendezvous=address, cores=cores, environ=os.environ))


def become(command: Command) -> NoReturn:
    """Replace this process by `command`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command.argv[0], command.argv, os.environ | command.env)


def debug(job: Job) -> int:
    """Run the job as one rank in this very process, so that `breakpoint()` and pdb have the terminal.

    An exception that nobody handles opens pdb where it was raised, if there is a terminal to type on.
    """
    single = dataclasses.replace(job, overrides=(*job.overrides, *ONE_PROCESS), nproc=1)
    (command,) = rank_commands(single, rendezvous="", cores=1, environ=os.environ)
    os.environ.update(command.env)
    return run_here("trainer", *single.arguments)


def run_here(module: str, *arguments: str) -> int:
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
