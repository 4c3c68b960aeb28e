"""The disk of the run folder, which may hang, as where a file server is away: no work on it keeps the batch
step from answering signals and putting the job back into the queue.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from launch.local.folder_work import FolderHangs, in_time
from launch.local.signal_inbox import SignalInbox

T = TypeVar("T")


class RunDisk:
    """Does work on the run folder, each time in a bounded time.

    folder: the run folder.
    signals: a request to stop that comes shortens the time; it stays in there.
    asked: a request to stop has come, or the folder has not answered once: the time is short from then on.
    """

    def __init__(self, folder: Path, signals: SignalInbox) -> None:
        self.folder = folder
        self.asked = False
        self._signals = signals

    def do(self, work: Callable[[], T]) -> T:
        """Return `work()`. FolderHangs, an OSError, where the folder does not answer in time."""
        try:
            return in_time(work, self.folder, self._signals, asked=self.asked)
        except FolderHangs:
            self.asked = True
            raise
