"""Tasks on Ray: on a cluster of which this machine is a node, or on one that is started here for the command.

Ray starts a task again, on any node, when its process or its node dies; what the task had finished lies in
the shared folder and is not done again. Nothing but a task and its outcome travels through Ray: documents,
signatures and shards are files.
"""

import functools
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data.prepare.engines import same_everywhere
from data.prepare.engines.attempts import keep_to_one_thread, with_retries
from data.prepare.units import Advance, Run, Task, TaskFunction

# How often a task may lose its process or its node before the command ends.
_DEATHS = 8
_OBJECT_STORE_BYTES = 100 << 20  # the least that Ray takes is 75 MB; nothing large is put there
_CONNECT_SECONDS = 10.0
_REMEDY = "start Ray there (ray start --head), and on this machine: ray start --address HOST:PORT"
_WAIT_SECONDS = 0.5
_COUNT_CORES_SECONDS = 10.0
_WAITING_PER_CORE = (
    2  # so that no core waits for this process, and a cluster that can grow sees that there is more
)


@contextmanager
def connected(on: str, workers: int, scratch: Path) -> Iterator[Run]:
    """Connect to Ray, or start it. Arguments as those of `chosen.started`.

    Raises RuntimeError where there is no cluster at the address, or none can be started.
    """
    import ray

    address = on.partition(":")[2]
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address:
            _check_reachable(on, address)
            settings |= {"address": address}
        else:
            folder = tempfile.mkdtemp(prefix="germinal-ray-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            settings |= {
                "address": "local",
                "num_cpus": workers or len(os.sched_getaffinity(0)),
                "object_store_memory": _OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_temp_dir": folder,
            }
        try:
            ray.init(**settings)
        except Exception as error:  # Ray raises plain ones, too
            why = str(error).partition("\n")[0]
            raise RuntimeError(f"--on {on}: {why}" + (f": {_REMEDY}" if address else "")) from error
        stack.callback(ray.shutdown)
        mark = same_everywhere.leave(scratch)
        stack.callback(same_everywhere.remove, mark)
        yield functools.partial(_run, workers, mark)


def _check_reachable(on: str, address: str) -> None:
    """Raise RuntimeError where nothing listens at HOST:PORT; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise RuntimeError(f"--on {on}: {error}: {_REMEDY}") from None


def _run(
    workers: int,
    mark: same_everywhere.Mark,
    function: TaskFunction,
    preparation: Any,
    tasks: Sequence[Task],
    advance: Advance,
) -> None:
    """Call `function(preparation, task, advance)` for every task, in any order, on any node.

    Raises the exception of the first task that failed; RuntimeError where a task's processes die each time.
    """
    import ray

    remote = ray.remote(num_cpus=1, max_retries=_DEATHS)(_task)
    common = ray.put((mark, function, preparation))
    left = iter(tasks)
    waiting: dict[Any, Task] = {}
    most, counted = 0, -_COUNT_CORES_SECONDS
    try:
        while True:
            if time.monotonic() - counted > _COUNT_CORES_SECONDS:  # nodes come and go
                counted = time.monotonic()
                cores = int(ray.cluster_resources().get("CPU", 1))
                most = workers or max(1, cores) * _WAITING_PER_CORE
            while len(waiting) < most and (task := next(left, None)) is not None:
                waiting[remote.remote(common, task)] = task
            if not waiting:
                return
            finished, _ = ray.wait(list(waiting), num_returns=1, timeout=_WAIT_SECONDS)
            for reference in finished:
                task = waiting.pop(reference)
                _raise_failure(reference, task)
                advance(task.bytes)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _task(common: Any, task: Task) -> None:
    """One attempt at a task, in a process of Ray's."""
    mark, function, preparation = common
    same_everywhere.check(mark)
    keep_to_one_thread()
    with_retries(function, preparation, task, lambda size_bytes: None)


def _raise_failure(reference: Any, task: Task) -> None:
    """Raise what a finished task has raised, as itself."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        why = str(error).partition("\n")[0]
        raise RuntimeError(
            f"the process of task {task.number} has died {_DEATHS + 1} times (out of memory?): {why}; run "
            "the same command again, with fewer --workers or on nodes with more memory"
        ) from None
