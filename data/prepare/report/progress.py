"""The progress bar of `prepare`, on standard error: phase, share done, rate, time left."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column

_MOVE_SECONDS = 0.1


class Progress:
    """One bar for each phase. Where standard error is no terminal, one line for each phase at its end."""

    def __init__(self, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._bar = Bar(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(),  # the only column that shrinks on a narrow terminal
            DownloadColumn(table_column=Column(no_wrap=True)),
            TransferSpeedColumn(table_column=Column(no_wrap=True)),
            TextColumn("left", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task: TaskID | None = None
        self._name = ""
        self._bytes = 0
        self._began = self._moved = 0.0

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._end_phase()
        self._bar.stop()

    def phase(self, name: str, total_bytes: int) -> None:
        """Begin a phase of `total_bytes` of input."""
        self._end_phase()
        self._name, self._bytes, self._began = name, 0, time.monotonic()
        self._task = self._bar.add_task(name, total=total_bytes)

    def advance(self, size_bytes: int) -> None:
        """Count `size_bytes` of input as done."""
        self._bytes += size_bytes
        # Drawing the bar takes longer than tokenising a short document.
        now = time.monotonic()
        if self._task is not None and now - self._moved > _MOVE_SECONDS:
            self._moved = now
            self._bar.update(self._task, completed=self._bytes)

    def _end_phase(self) -> None:
        if self._task is None:
            return
        self._bar.update(self._task, completed=self._bar.tasks[self._task].total)
        seconds = time.monotonic() - self._began
        if not self._console.is_terminal:
            rate = self._bytes / max(seconds, 1e-9) / 1e6
            self._console.print(
                f"{self._name}: {self._bytes / 1e6:.1f} MB in {seconds:.1f} s, {rate:.1f} MB/s"
            )
        self._task = None
