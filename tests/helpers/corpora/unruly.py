"""Engines for tests: one that runs tasks in order, and one that does to them what a cluster may do."""

import pickle
import random
from collections.abc import Sequence
from typing import Any

from data.prepare.units import Advance, Task, TaskFunction


def in_order(function: TaskFunction, preparation: Any, tasks: Sequence[Task], advance: Advance) -> None:
    """Run the tasks, one after the other."""
    for task in tasks:
        function(preparation, task, advance)


class _Died(BaseException):
    """The process of a task is gone."""


class Unruly:
    """Runs tasks as a cluster does on a bad day: in another order; each may die on its way and is begun
    again, and may be run again after its end, as by a node that was thought dead.

    ends_after: the whole engine ends (`Ended`) before the task after so many.

    Attributes: `died` and `twice`, how often that happened.
    """

    class Ended(BaseException):
        """The command was killed."""

    def __init__(self, seed: int, ends_after: int = -1) -> None:
        self.died = self.twice = 0
        self._rng = random.Random(seed)
        self._left = ends_after

    def run(self, function: TaskFunction, preparation: Any, tasks: Sequence[Task], advance: Advance) -> None:
        """Run the tasks; a copy of each, as another process has it."""
        for task in self._rng.sample(tasks, len(tasks)):
            if self._left == 0:
                raise self.Ended
            self._left -= 1
            for _ in range(1 + (self._rng.random() < 0.3)):
                self._until_done(*pickle.loads(pickle.dumps((function, preparation, task))))
            self.twice += _
            advance(task.bytes)

    def _until_done(self, function: TaskFunction, preparation: Any, task: Task) -> None:
        while True:
            dies_at = self._rng.choice([1, 2, 5, 50, 10**9])
            try:
                return function(preparation, task, self._dying(dies_at))
            except _Died:
                self.died += 1

    def _dying(self, at: int) -> Advance:
        calls = 0

        def advance(size_bytes: int) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise _Died

        return advance
