"""One rank of this machine, as its supervisor sees it: how its process is started, and how it ended."""

import ctypes
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

from common import processes
from common.exit_codes import ASKED_TO_STOP
from launch.job import ProcessCommand
from launch.local.rank_output import RankOutput, open_terminal
from trainer.process.interrupts import hold


@dataclass
class LocalRank:
    """One rank of this machine.

    process: the rank's process.
    output: passes on what the process prints.
    descriptors: to read the process's output from.
    ended_at: when the process was seen to have ended (`time.monotonic`); 0.0 while it runs.
    under_way: the rank's first step is done, and so every rank has begun.
    """

    process: "subprocess.Popen[bytes]"
    output: RankOutput
    descriptors: list[int]
    ended_at: float = 0.0
    under_way: bool = False

    @classmethod
    def start(
        cls, number: int, command: ProcessCommand, *, prefixed: bool, under_way_pipe: int
    ) -> "LocalRank":
        """Start a rank.

        Args:
            number: the rank.
            command: its process.
            prefixed: whether `[rank N]` stands before its lines.
            under_way_pipe: descriptor on which the rank writes its number when its first step is done.
        """
        has_terminal = number == 0 and os.isatty(2)
        ours, theirs = open_terminal() if has_terminal else os.pipe()
        process = subprocess.Popen(
            command.argv,
            env=os.environ | command.env | {"GERMINAL_UNDER_WAY": str(under_way_pipe)},
            pass_fds=(under_way_pipe, *command.descriptors),
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else subprocess.PIPE,
            stderr=theirs,
            process_group=0,  # Ctrl-C reaches the supervisor only, which passes it on once
            preexec_fn=partial(_prepare_child, os.getpid()),
        )
        os.close(theirs)
        descriptors = [ours]
        if process.stdout is not None:
            descriptors.append(os.dup(process.stdout.fileno()))
            process.stdout.close()
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
        terminal = ours if has_terminal else -1
        output = RankOutput(number, prefixed=prefixed, errors=ours, terminal=terminal)
        return cls(process, output, descriptors)

    @property
    def number(self) -> int:
        return self.output.number

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def failed(self) -> bool:
        """Whether the rank has ended in a way that ends the others too.

        It failed; or it was asked to stop and left before all were under way, so the others wait for it.
        """
        code = self.process.returncode
        return code not in (None, 0) and not (code in ASKED_TO_STOP and self.under_way)

    @property
    def failed_at(self) -> float:
        """When the rank's error began, or when it ended without one."""
        return self.output.held_since or self.ended_at

    @property
    def is_stopped(self) -> bool:
        """Whether the process is stopped by a signal or a debugger (proc(5): state T or t)."""
        found = processes.stat(self.process.pid)
        return found is not None and found.state in "Tt"


def _prepare_child(parent: int) -> None:
    """In the child, before it becomes the rank: hold signals back until the rank handles them.

    Otherwise a Ctrl-C while Python itself starts is a traceback. On Linux, the kernel kills the rank when
    `parent` dies.
    """
    hold()
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
