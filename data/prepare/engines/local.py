"""Call one function for many tasks in worker processes of this machine, with progress.

No worker outlives the call or a parent that is killed.
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import wait as wait_connections
from multiprocessing.context import ForkServerContext
from typing import Any

from data.prepare.engines.attempts import keep_to_one_thread, with_retries
from data.prepare.units import Advance, Task, TaskFunction

_POLL_SECONDS, _WAITING_PER_WORKER = 0.2, 4
# In a worker: shared with the parent, set by `_begin`.
_done_bytes: Any = None
_stop: Any = None


class _Stopped(Exception):
    """Raised in a worker when the parent has given up: another task failed, or Ctrl-C."""


def run_tasks(
    workers: int, function: TaskFunction, preparation: Any, tasks: Sequence[Task], advance: Advance
) -> None:
    """Call `function(preparation, task, advance)` for every task, in any order.

    workers: number of processes; with 1, this process does the work.
    function: importable by name, for it is pickled.
    preparation: what the function needs to know of the whole; pickled as well.
    tasks: the tasks.
    advance: called in this process with the bytes of input done since the last call.

    Raises the exception of the first task that failed; RuntimeError where a worker was killed from outside.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            with_retries(function, preparation, task, advance)
        return
    context = _context()
    done_bytes, stop = context.Value("q", 0), context.Value("b", 0)
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _begin, (done_bytes, stop))
    try:
        # Few at a time: each wait looks at all that are handed out.
        left, futures = iter(tasks), set[Future[None]]()
        reported, most = 0, _WAITING_PER_WORKER * workers
        while True:
            for task in itertools.islice(left, most - len(futures)):
                futures.add(pool.submit(_call, function, preparation, task))
            if not futures:
                break
            finished, futures = wait(futures, _POLL_SECONDS, FIRST_COMPLETED)
            for future in finished:
                future.result()
            advance(done_bytes.value - reported)
            reported = done_bytes.value
    except BrokenProcessPool:
        raise RuntimeError(
            "a prepare worker was killed (out of memory?); run the same command again, with fewer --workers, "
            f"and it goes on: {preparation.scratch} keeps what is finished"
        ) from None
    finally:
        stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> ForkServerContext:
    """The fork server's context: a fresh process imports the packages once and is then forked, so that no
    worker inherits this process's threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.prepare.encode", "webdataset"])
    return context


def warm_up(workers: int) -> None:
    """Start the fork server and its imports now, before the first task is handed out."""
    if workers > 1:
        _context()
        forkserver.ensure_running()


def _begin(done_bytes: Any, stop: Any) -> None:
    global _done_bytes, _stop
    _done_bytes, _stop = done_bytes, stop
    keep_to_one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and stops the workers
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this worker when its parent has ended: it would wait for work for ever."""
    wait_connections([sentinel])
    os._exit(1)


def _call(function: TaskFunction, preparation: Any, task: Task) -> None:
    def count(size_bytes: int) -> None:
        if _stop.value:
            raise _Stopped
        with _done_bytes.get_lock():
            _done_bytes.value += size_bytes

    with_retries(function, preparation, task, count)
