"""What a run does until its first step, said where that takes long: nobody should wait without a word."""

import sys
import threading
from collections.abc import Callable

PATIENCE_SECONDS = 2.0


class Starting:
    """Says on standard error what is being done, once that has lasted `patience_seconds` in silence.

    Only one rank is `shown`. `end` ends it; `until` lets it end by itself when `over()` becomes true.
    """

    def __init__(self, *, shown: bool, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._what = self._said = ""
        self._over: Callable[[], bool] = lambda: False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="starting", daemon=True)
        if shown:
            self._thread.start()

    def now(self, what: str) -> None:
        """This is what the run does from here on."""
        self._what = what

    def until(self, what: str, over: Callable[[], bool]) -> None:
        """The last thing; it is done when `over()`."""
        self._over = over
        self.now(what)

    def end(self) -> None:
        """Say no more. Waits for the thread, which must not outlive the interpreter."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        before = ""
        while not self._ended.wait(self._patience_seconds) and not self._over():
            what = self._what
            if what == before != self._said:
                self._said = what
                print(f"starting: {what}", file=sys.stderr, flush=True)
            before = what
