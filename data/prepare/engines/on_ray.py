"""Tasks on Ray: on a cluster of which this machine is a node, or on one that is started here for the command.

Ray starts a task again, on any node, when its process or its node dies; what the task had finished lies in
the shared folder and is not done again. Nothing but a task and its outcome travels through Ray: documents,
signatures and shards are files.
"""

import functools
import logging
import math
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
_CONNECT_SECONDS, _LOOK_SECONDS = 10.0, 3.0
_REMEDY = "start Ray there (ray start --head), and on this machine: ray start --address HOST:PORT"
_WAIT_SECONDS = 0.5
_COUNT_CORES_SECONDS = 10.0
# Looked for as often as cores are counted. Ray itself waits for its head for 60 s, and then ends this process
# without a word of ours.
_HEAD_MISSED = 3
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
    if address == "auto":
        return
    try:
        _connect(address, _CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"--on {on}: {error}: {_REMEDY}") from None


def _connect(address: str, seconds: float) -> None:
    """Raise OSError where nothing listens at HOST:PORT, or has not answered after so long."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), seconds).close()


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
    cores = _Cores(mark.scratch)
    try:
        while True:
            most = workers or cores.count() * _WAITING_PER_CORE
            while len(waiting) < most and (task := next(left, None)) is not None:
                waiting[remote.remote(common, task)] = task
            if not waiting:
                return
            for reference in _finished(list(waiting)):
                task = waiting.pop(reference)
                _raise_failure(reference, task, mark.scratch)
                advance(task.bytes)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


class _Cores:
    """How many cores the cluster has; looked at every ten seconds, for nodes come and go.

    scratch: the folder of unfinished work, for the message where the cluster is gone.
    """

    def __init__(self, scratch: Path) -> None:
        import ray

        self._scratch, self._count = scratch, 1
        self._head = ray.get_runtime_context().gcs_address
        self._looked, self._missed = -math.inf, 0

    def count(self) -> int:
        """The number of cores. Raises RuntimeError where Ray's head has been gone for some time."""
        import ray

        if time.monotonic() - self._looked > _COUNT_CORES_SECONDS:
            self._looked = time.monotonic()
            try:
                _connect(self._head, _LOOK_SECONDS)
            except OSError as error:  # counting would wait for it
                self._missed += 1
                if self._missed == _HEAD_MISSED:
                    raise RuntimeError(
                        f"Ray's head at {self._head} is gone ({error}): start Ray again, and run the same "
                        f"command again, which goes on: {self._scratch} keeps what is finished"
                    ) from None
            else:
                self._missed = 0
                self._count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        return self._count


def _finished(references: list[Any]) -> list[Any]:
    """All that have finished, after a wait for the first one: each wait looks at all of them."""
    import ray

    finished, _ = ray.wait(references, num_returns=1, timeout=_WAIT_SECONDS)
    if finished:
        finished, _ = ray.wait(references, num_returns=len(references), timeout=0)
    return list(finished)


def _task(common: Any, task: Task) -> None:
    """One attempt at a task, in a process of Ray's."""
    mark, function, preparation = common
    same_everywhere.check(mark)
    keep_to_one_thread()
    with_retries(function, preparation, task, lambda size_bytes: None)


def _raise_failure(reference: Any, task: Task, scratch: Path) -> None:
    """Raise what a finished task has raised, as itself. `scratch`: the folder of unfinished work."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        why = str(error).partition("\n")[0]
        raise RuntimeError(
            f"the process of task {task.number} has died {_DEATHS + 1} times (out of memory?): {why}; run "
            "the same command again, with fewer --workers or on nodes with more memory, and it goes on: "
            f"{scratch} keeps what is finished"
        ) from None
