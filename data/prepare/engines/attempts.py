"""One attempt at a task, wherever it runs."""

import os
from typing import Any

from common.retry import attempts
from data.prepare.units import Advance, Task, TaskFunction

# For a task whose server fails: pauses of 1, 5 and 25 s.
ATTEMPTS, PAUSE_SECONDS, PAUSE_FACTOR = 4, 1.0, 5.0


def keep_to_one_thread() -> None:
    """Keep this process, one of many that work at a time, from starting a thread of the tokenizer's library
    for each core. Before the library's first use.
    """
    os.putenv("RAYON_NUM_THREADS", "1")


def with_retries(function: TaskFunction, preparation: Any, task: Task, advance: Advance) -> None:
    """Call `function`, several times for a task that reads from a server: a unit keeps its finished shards,
    and a failed attempt changes nothing else. `advance` gets never more than the task's bytes.
    """
    advance = _capped(advance, task.bytes)
    for _ in attempts(ATTEMPTS, PAUSE_SECONDS, PAUSE_FACTOR):
        try:
            return function(preparation, task, advance)
        except RuntimeError as error:
            if not task.is_remote or isinstance(error.__cause__, FileNotFoundError | ImportError):
                raise
            last = error
    raise last


def _capped(advance: Advance, task_bytes: int) -> Advance:
    """`advance` for one task, never beyond the task's bytes: a compressed file holds more text than bytes."""
    left = task_bytes

    def count(size_bytes: int) -> None:
        nonlocal left
        size_bytes = left if size_bytes < 0 else min(size_bytes, left)
        left -= size_bytes
        advance(size_bytes)

    return count
