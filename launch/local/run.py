"""Runs a job on this machine, at once."""

import contextlib
import importlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from launch.job import Job, ProcessCommand
from launch.local.debug_terminal import DebugTerminal
from launch.local.meeting_socket import meeting_socket
from launch.local.rank_commands import rank_commands
from launch.local.supervisor import supervise
from trainer.process.interrupts import hold

# What cuBLAS must be told before it starts, or torch.use_deterministic_algorithms refuses matrix products:
# https://docs.nvidia.com/cuda/cublas/#results-reproducibility
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def run_as_children(job: Job) -> int:
    """Run the job's ranks as children of this process; return the exit code."""
    with meeting_socket(job.nproc) as meet_at:
        return supervise(_commands(job, meet_at)).show_error()


def become(command: ProcessCommand) -> NoReturn:
    """Replace this process by `command`."""
    sys.stdout.flush()
    sys.stderr.flush()
    hold()  # signals that arrive during execve wait until the new program handles them
    os.execve(command.argv[0], command.argv, os.environ | command.env)


def debug(job: Job) -> int:
    """Look into a run (`trainer.debug`); return the exit code.

    A single rank is this very process, so that `breakpoint()` and pdb have the terminal. Several are
    children; those that enter pdb get this terminal one after another, if it is one.
    """
    for name, value in DETERMINISTIC.items():
        os.environ.setdefault(name, value)
    if job.nproc == 1:
        (command,) = _commands(job)
        os.environ.update(command.env)
        main: Callable[[Sequence[str]], int] = importlib.import_module(job.module).main
        return main(job.arguments)
    if sys.stdin is None or not sys.stdin.isatty():
        return run_as_children(job)
    from trainer.debug.debugger import socket_folder

    with socket_folder() as sockets:
        job = replace(job, options=(*job.options, f"--sockets={sockets}"))
        with contextlib.closing(DebugTerminal(Path(sockets))):
            return run_as_children(job)


def _commands(job: Job, meet_at: socket.socket | None = None) -> list[ProcessCommand]:
    return rank_commands(job, environ=os.environ, meet_at=meet_at)
