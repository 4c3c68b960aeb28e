"""Plants a hang into one rank of a run, once. Python imports this file at its start where the folder is in
PYTHONPATH.

HANG: "WHERE RANK COUNT MARK": at the COUNT-th call of a function of the run, on rank RANK, unless the file
MARK is there, which is made at that moment. See `planted` for the environment of a command.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def loop(*given: Any) -> None:
    """A callback that never returns."""
    import time

    while True:
        time.sleep(0.01)


def broadcast(*given: Any) -> None:
    """A collective that the other ranks do not call."""
    import torch
    import torch.distributed as dist

    dist.broadcast(torch.ones(4), 0)


def fifo(*given: Any) -> None:
    """A read that gets nothing: of a FIFO that nobody writes to."""
    path = f"{os.environ['HANG'].split()[3]}.fifo"
    os.mkfifo(path)
    os.open(path, os.O_RDONLY)


def held(*given: Any) -> None:
    """A call into C that keeps the interpreter's lock."""
    import ctypes

    ctypes.PyDLL(None).sleep(3600)


# WHERE → (module, class, method before which it happens, what happens)
PLACES: dict[str, tuple[str, str, str, Callable[..., None]]] = {
    "loop": ("trainer.objectives.causal_lm", "CausalLM", "loss", loop),
    "collective": ("trainer.objectives.causal_lm", "CausalLM", "loss", broadcast),
    "held": ("trainer.objectives.causal_lm", "CausalLM", "loss", held),
    "tracker": ("trainer.metrics.trackers", "Trackers", "log", loop),
    "read": ("data.stream.stream", "Stream", "locate", fifo),
    "save": ("trainer.checkpoint.saving.attempt", "Attempt", "publish", fifo),
    "evaluation": ("trainer.evaluation.evaluate", "Evaluator", "_read", loop),
    "start": ("trainer.checkpoint.manager", "Checkpointer", "resume", loop),
}


class Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module as usual, and then puts the hang into one of its methods."""

    def __init__(self, place: tuple[str, str, str, Callable[..., None]], count: int, mark: str) -> None:
        self.module, self.owner, self.method, self.hang = place
        self.count, self.mark = count, mark
        self.loader: Any = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        self.loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        owner = getattr(module, self.owner)
        setattr(owner, self.method, self.planted(getattr(owner, self.method)))

    def planted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count -= 1
            if self.count == 0 and not os.path.exists(self.mark):
                open(self.mark, "x").close()
                self.hang(*args)
            return function(*args, **kwargs)

        return wrapped


if "HANG" in os.environ:
    where, rank, count, mark = os.environ["HANG"].split()
    if os.environ.get("RANK") == rank:
        sys.meta_path.insert(0, Planter(PLACES[where], int(count), mark))
