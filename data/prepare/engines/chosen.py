"""The engine that `--on` names."""

import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.prepare.engines import local
from data.prepare.units import Run

LOCAL, RAY = "local", "ray"


def check_engine(on: str) -> None:
    """Raise ValueError where there is no such engine, or its package is not installed."""
    if not re.fullmatch(rf"{LOCAL}|{RAY}|{RAY}:auto|{RAY}:\S+:\d{{1,5}}", on):
        raise ValueError(f"--on {on} is none of local, ray, ray:HOST:PORT and ray:auto")
    if on != LOCAL and importlib.util.find_spec("ray") is None:
        raise ValueError(f"--on {on} needs ray, which is not installed: pip install 'germinal[ray]'")


@contextmanager
def started(on: str, workers: int, most_tasks: int, scratch: Path) -> Iterator[Run]:
    """Start an engine; it has ended when the context ends.

    on: as `prepare` takes it.
    workers: tasks at the same time at most; 0 for one each core.
    most_tasks: no step has more that take long.
    scratch: the folder of unfinished work, which all of the engine's machines share.
    """
    if on == LOCAL:
        workers = workers or len(os.sched_getaffinity(0))
        local.warm_up(min(workers, most_tasks))
        yield functools.partial(local.run_tasks, workers)
        return
    from data.prepare.engines import on_ray

    with on_ray.connected(on, workers, scratch) as run:
        yield run
