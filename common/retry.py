"""Attempts with pauses between them, as a loop; what counts as success is up to the loop's body.

Not the `tenacity` package: half of our loops judge values that they keep from attempt to attempt, not
exceptions, and each ends in an error line of its own; a generator serves both in fewer lines.
"""

import time
from collections.abc import Iterator
from typing import TypeVar

# Note on an error (`BaseException.add_note`) that comes again, bit for bit, whenever the work is done again.
REPEATS = "comes again at every attempt"

E = TypeVar("E", bound=Exception)


def repeats(error: E) -> E:
    """Return the error with the note REPEATS, for `raise repeats(…)`: nobody need start the work again."""
    error.add_note(REPEATS)
    return error


def comes_again(error: Exception) -> bool:
    """Whether `repeats` was said of an error."""
    return REPEATS in getattr(error, "__notes__", ())


def attempts(times: int, pause_seconds: float, factor: float = 2.0) -> Iterator[int]:
    """Yield 0, 1, …, times − 1; sleep before each but the first. The loop's body leaves at its first success.

    times: how often to try.
    pause_seconds: before the second attempt.
    factor: each further pause is this many times the one before.
    """
    for attempt in range(times):
        if attempt:
            time.sleep(pause_seconds * factor ** (attempt - 1))
        yield attempt
