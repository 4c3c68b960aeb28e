"""Ends of this process from outside the main thread, which may wait in a collective. Torch-free."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from common.exit_codes import FAILED

_PARENT_SECONDS = 2.0
_WRITE_SECONDS = 5.0
# A signal to many processes reaches the launcher and its ranks one after the other.
_SAME_SIGNAL_SECONDS = 0.5


def within(seconds: float, work: Callable[[], object]) -> None:
    """Do `work` in a thread of its own and wait for it, but no longer than `seconds`: a file system that does
    not answer must not keep a process that is to end. What it raises is dropped.
    """

    def silently() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=silently, name="before the end", daemon=True)
    with contextlib.suppress(RuntimeError):  # of starting it, where the interpreter is ending anyway
        thread.start()
        thread.join(seconds)


def end_process(why: str, code: int) -> NoReturn:
    """Write one line, unless `why` is empty, and end this process, from any thread."""
    if why:  # the reader of standard error may have gone, or read no more
        within(_WRITE_SECONDS, lambda: os.write(2, f"error: {why}\n".encode()))
    os._exit(code)


def end_with_parent(rank: int, parent: int, is_stopping: Callable[[], bool]) -> None:
    """Start a thread that ends this process when its parent, the launcher, has ended.

    parent: the launcher's process id, as it was when this process began.
    is_stopping: whether this rank was asked to stop. It may then end its step and save: a signal to a whole
        SLURM step, or to a process group, kills torchrun's agent and asks the ranks to stop.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        time.sleep(_SAME_SIGNAL_SECONDS)
        while is_stopping():
            time.sleep(_PARENT_SECONDS)
        end_process(
            f"rank {rank}: its launcher (process {parent}) is gone, and so nobody watches over it", FAILED
        )

    threading.Thread(target=watch, name="parent", daemon=True).start()
