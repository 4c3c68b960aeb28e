"""Call one function for many units in worker processes of this machine, with progress.

No worker outlives the call or a parent that is killed. This file does not import the work on a unit, and
that work does not import this file: something other than local processes may run the same units.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import wait as wait_connections
from multiprocessing.context import ForkServerContext
from typing import Any

from common.retry import attempts
from data.prepare.units import Advance, Unit

# (preparation, unit, advance): works on one unit; a second call for a unit goes on where a failed one
# stopped.
UnitFunction = Callable[[Any, Unit, Advance], None]

_POLL_SECONDS = 0.2
# For a unit whose server fails: pauses of 1, 5 and 25 s.
ATTEMPTS, PAUSE_SECONDS, PAUSE_FACTOR = 4, 1.0, 5.0
# In a worker: shared with the parent, set by `_begin`.
_done_bytes: Any = None
_stop: Any = None


class _Stopped(Exception):
    """Raised in a worker when the parent has given up: another unit failed, or Ctrl-C."""


def run_units(
    function: UnitFunction, preparation: Any, units: Sequence[Unit], workers: int, advance: Advance
) -> None:
    """Call `function(preparation, unit, advance)` for every unit, in any order.

    function: importable by name, for it is pickled.
    preparation: what the function needs to know of the whole; pickled as well.
    units: the units.
    workers: number of processes; with 1, this process does the work.
    advance: called in this process with the bytes of input done since the last call.

    Raises the exception of the first unit that failed; RuntimeError where a worker was killed from outside.
    """
    if workers <= 1 or len(units) <= 1:
        for unit in units:
            _with_retries(function, preparation, unit, _capped(advance, unit.bytes))
        return
    context = _context()
    done_bytes, stop = context.Value("q", 0), context.Value("b", 0)
    pool = ProcessPoolExecutor(min(workers, len(units)), context, _begin, (done_bytes, stop))
    try:
        futures = {pool.submit(_call, function, preparation, unit) for unit in units}
        reported = 0
        while futures:
            finished, futures = wait(futures, _POLL_SECONDS, FIRST_EXCEPTION)
            for future in finished:
                future.result()
            advance(done_bytes.value - reported)
            reported = done_bytes.value
    except BrokenProcessPool:
        raise RuntimeError(
            "a prepare worker was killed (out of memory?); run the same command again, with fewer --workers"
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
    """Start the fork server and its imports now, before the first unit is handed out."""
    if workers > 1:
        _context()
        forkserver.ensure_running()


def _begin(done_bytes: Any, stop: Any) -> None:
    global _done_bytes, _stop
    _done_bytes, _stop = done_bytes, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and stops the workers
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this worker when its parent has ended: it would wait for work for ever."""
    wait_connections([sentinel])
    os._exit(1)


def _call(function: UnitFunction, preparation: Any, unit: Unit) -> None:
    def count(size_bytes: int) -> None:
        if _stop.value:
            raise _Stopped
        with _done_bytes.get_lock():
            _done_bytes.value += size_bytes

    _with_retries(function, preparation, unit, _capped(count, unit.bytes))


def _with_retries(function: UnitFunction, preparation: Any, unit: Unit, advance: Advance) -> None:
    """Call `function`, several times for a unit that reads from a server: the unit keeps its finished shards,
    and a failed attempt changes nothing else.
    """
    for _ in attempts(ATTEMPTS, PAUSE_SECONDS, PAUSE_FACTOR):
        try:
            return function(preparation, unit, advance)
        except RuntimeError as error:
            if not unit.is_remote or isinstance(error.__cause__, FileNotFoundError | ImportError):
                raise
            last = error
    raise last


def _capped(advance: Advance, unit_bytes: int) -> Advance:
    """`advance` for one unit, never beyond the unit's bytes: a compressed file holds more text than bytes."""
    left = unit_bytes

    def count(size_bytes: int) -> None:
        nonlocal left
        size_bytes = left if size_bytes < 0 else min(size_bytes, left)
        left -= size_bytes
        advance(size_bytes)

    return count
