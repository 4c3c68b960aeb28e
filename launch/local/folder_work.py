"""Work on a run folder that may hang, as where a file server is away: signals are answered meanwhile."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from launch.local.rank_output import show_line
from launch.local.signal_inbox import SignalInbox

SAY_SECONDS = 10.0  # then the wait is told
FOLDER_SECONDS = 600.0  # then it is given up; a file server that starts anew takes minutes
ASKED_SECONDS = 3.0  # what is left of it after a request to stop

T = TypeVar("T")


class FolderHangs(TimeoutError):
    """The run folder did not answer in time."""


def in_time(work: Callable[[], T], folder: Path, signals: SignalInbox, *, asked: bool = False) -> T:
    """Return `work()`, which reads or writes in `folder`. It is done by a thread, which is left behind where
    it hangs: `FolderHangs` is raised then.

    signals: a request to stop that is in it, or comes, shortens the wait; it is left there.
    asked: a request to stop came before.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="run folder", daemon=True)
    thread.start()
    began = time.monotonic()
    give_up = began + (ASKED_SECONDS if asked else FOLDER_SECONDS)
    say_at = began + SAY_SECONDS
    while thread.is_alive():
        thread.join(0.1)
        now = time.monotonic()
        if signals.wait(0.0):
            give_up = min(give_up, now + ASKED_SECONDS)
        if now > give_up:
            raise FolderHangs(f"{folder} has not answered for {now - began:.0f} s")
        if now > say_at:
            say_at = float("inf")
            show_line(f"{folder} does not answer: waiting for it before the next start".encode())
    if errors:
        raise errors[0]
    return results[0]
