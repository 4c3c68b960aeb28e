"""The live line of a run: a bar on a terminal, an occasional plain line elsewhere."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

REFRESH_SECONDS = 0.25
PLAIN_SECONDS = 10.0
TIME_WIDTH = len("0:00:00")

_bars: "WeakSet[Progress]" = WeakSet()  # the bars on a terminal now
_watched = False


class Progress:
    """Shows how far a run is. `shown` is True on one rank only; the others show nothing.

    On a terminal: a bar with loss, speed and time to go, redrawn a few times a second. Elsewhere (a log
    file, a cluster's output): a line at the first and the last step and every ten seconds between them, and
    so on a terminal once a debugger has been called: a bar would be redrawn over its prompt.
    """

    def __init__(self, steps: int, *, done: int = 0, shown: bool = True, title: str = "training") -> None:
        self._steps = steps
        self._done = done
        self._shown = shown
        self._title = title
        self._next = 0.0
        self._begin = time.monotonic()
        self._first = done
        self._bar: Any = None
        self._task: Any = None
        if shown and sys.stderr.isatty():
            self._open_bar()

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """`step` steps are done and these are its metrics. Costs next to nothing between two redraws."""
        self._done = step
        now = time.monotonic()
        if not self._shown or (now < self._next and step < self._steps):
            return
        self._next = now + (REFRESH_SECONDS if self._bar else PLAIN_SECONDS)
        if self._bar:
            self._bar.update(self._task, completed=step, text=self._fitting(metrics))
        else:
            self.print_line(f"step {step}/{self._steps}  {summary(metrics)}  {self._remaining(now)}")

    def print_line(self, line: str) -> None:
        """Print a line above the bar: an evaluation, an event."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        elif self._shown:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.update(self._task, completed=self._done)
            self._bar.stop()
            self._bar = None
            _bars.discard(self)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        self._bar = Bar(
            TextColumn(self._title, table_column=Column(no_wrap=True)),
            BarColumn(),  # the only column that shrinks: `_fitting` shortens the text
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(self._steps)) + 1)),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=TIME_WIDTH)),
            console=Console(stderr=True),
            refresh_per_second=1 / REFRESH_SECONDS,
        )
        self._task = self._bar.add_task(self._title, total=self._steps, completed=self._done, text="")
        self._bar.start()
        _bars.add(self)
        _watch_for_debuggers()

    def _fitting(self, metrics: Mapping[str, Any]) -> str:
        """The metrics that the terminal has room for, beside the title, the steps and the time to go."""
        gaps = 4
        room = self._bar.console.width - len(self._title) - 2 * len(str(self._steps)) - 1 - TIME_WIDTH - gaps
        text = summary(metrics)
        if len(text) > room:
            text = summary({key: metrics[key] for key in metrics if key not in ("grad_norm", "lr")})
        return text[: max(0, room)]

    def _remaining(self, now: float) -> str:
        done = self._done - self._first
        left = (now - self._begin) / done * (self._steps - self._done) if done else math.nan
        return f"{left:,.0f} s to go" if math.isfinite(left) and left >= 1 else ""


def _watch_for_debuggers() -> None:
    """Close the bars as soon as a debugger begins. Every debugger calls sys.settrace, however it is started.

    Only an audit hook (PEP 578) is called then, and a hook cannot be removed.
    """
    global _watched
    if not _watched:
        sys.addaudithook(_on_audit)
        _watched = True


def _on_audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "sys.settrace":
        for progress in list(_bars):
            progress.close()


def summary(metrics: Mapping[str, Any]) -> str:
    """`loss 3.214 · norm 0.52 · lr 1.00e-03 · 12,345 tokens/s · mfu 41.2%`, of the metrics that are there."""
    parts = []
    if (loss := metrics.get("loss")) is not None:
        parts.append(f"loss {loss:.3f}")
    if (norm := metrics.get("grad_norm")) is not None:
        parts.append(f"norm {norm:.3g}")
    if (lr := metrics.get("lr")) is not None:
        parts.append(f"lr {lr:.2e}")
    for name in metrics:
        if name.endswith("_per_second"):
            parts.append(f"{metrics[name]:,.0f} {name.removesuffix('_per_second')}/s")
    if (mfu := metrics.get("mfu")) is not None:
        parts.append(f"mfu {mfu:.1%}")
    return " · ".join(parts)
