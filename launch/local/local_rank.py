"""One rank of this machine, as its supervisor sees it: how its process is started, and how it ended."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from common.exit_codes import ASKED_TO_STOP
from launch.job import ProcessCommand
from launch.local.rank_output import Voice, terminal_like_ours
from trainer.process.interrupts import hold


@dataclass
class LocalRank:
    """One rank: its process, and what it says. `descriptors`: of what it prints, to be read from."""

    process: "subprocess.Popen[bytes]"
    voice: Voice
    descriptors: list[int] = field(default_factory=list)
    ended_at: float = 0.0
    under_way: bool = False  # its first step is done, and so every rank has begun

    @classmethod
    def start(cls, number: int, command: ProcessCommand, *, marked: bool, tell_under_way: int) -> "LocalRank":
        """Start `command` as rank `number`; its first step's end is told through `tell_under_way`."""
        live = number == 0 and os.isatty(2)
        ours, theirs = terminal_like_ours() if live else os.pipe()
        process = subprocess.Popen(
            command.argv,
            env=os.environ | command.env | {"GERMINAL_UNDER_WAY": str(tell_under_way)},
            pass_fds=(tell_under_way,),
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else subprocess.PIPE,
            stderr=theirs,
            process_group=0,  # Ctrl-C reaches the supervisor only, which passes it on once
            preexec_fn=partial(_become_a_rank, os.getpid()),
        )
        os.close(theirs)
        rank = cls(process, Voice(number, marked=marked), [ours])
        rank.voice.errors, rank.voice.live = ours, ours if live else -1
        if process.stdout is not None:
            rank.descriptors.append(os.dup(process.stdout.fileno()))
            process.stdout.close()
        for descriptor in rank.descriptors:
            os.set_blocking(descriptor, False)
        return rank

    @property
    def left_alone(self) -> bool:
        """Whether it has failed, or has left while the others were not to leave with it."""
        code = self.process.returncode
        return code not in (None, 0) and not (code in ASKED_TO_STOP and self.under_way)

    @property
    def failed_at(self) -> float:
        """When its last words began, or it ended without any."""
        return self.voice.began_at or self.ended_at

    @property
    def is_stopped(self) -> bool:
        """Whether the process is stopped by a signal or a debugger (proc(5): state T or t)."""
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/stat").read_text()
            return status.rpartition(")")[2].split()[0] in "Tt"
        return False


def _become_a_rank(parent: int) -> None:
    """In the child, before it becomes the rank: hold signals until the rank answers them.

    Otherwise a Ctrl-C while Python itself starts is a traceback. On Linux, the kernel kills the rank when
    `parent` dies.
    """
    hold()
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
