"""Reports what a start is doing, where that takes long: a user should not wait without a line."""

import sys
import threading
from collections.abc import Callable

PATIENCE_SECONDS = 2.0


class Starting:
    """Prints on standard error what the start is doing, once that has lasted `patience_seconds` in silence.

    Only one rank is `shown`. `end` ends the reports; after `until` they end by themselves.
    """

    def __init__(self, *, shown: bool, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._what = self._printed = ""
        self._over: Callable[[], bool] = lambda: False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="starting", daemon=True)
        if shown:
            self._thread.start()

    def now(self, what: str) -> None:
        """The start does `what` from here on."""
        self._what = what

    def until(self, what: str, over: Callable[[], bool]) -> None:
        """The start does `what` from here on, its last work, which is done when `over()` returns True."""
        self._over = over
        self.now(what)

    def end(self) -> None:
        """End the reports. Wait for the thread, which must not outlive the interpreter."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        before = ""
        while not self._ended.wait(self._patience_seconds) and not self._over():
            what = self._what
            if what == before != self._printed:
                self._printed = what
                print(f"starting: {what}", file=sys.stderr, flush=True)
            before = what
