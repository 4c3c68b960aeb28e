"""Runs one function over many units in worker processes, with progress, and leaves none behind."""

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
from data.prepare.units import Unit

Report = Callable[[int], None]
UnitFunction = Callable[[Any, Unit, Report], None]

_POLL_SECONDS = 0.2
# Of a unit whose server failed, with pauses of 1, 5 and 25 s.
ATTEMPTS, PAUSE_SECONDS, PAUSE_FACTOR = 4, 1.0, 5.0
_done_bytes: Any = None
_stop: Any = None


class _Stopped(Exception):
    """Another unit failed; this one's work is thrown away."""


def run_units(function: UnitFunction, job: Any, units: Sequence[Unit], workers: int, report: Report) -> None:
    """Calls `function(job, unit, report)` for every unit; with one worker, in this process.

    Raises what the first unit that failed raised; RuntimeError when a worker was killed from outside.
    """
    if workers <= 1 or len(units) <= 1:
        for unit in units:
            _attempts(function, job, unit, _capped(report, unit.bytes))
        return
    context = _context()
    done_bytes, stop = context.Value("q", 0), context.Value("b", 0)
    pool = ProcessPoolExecutor(min(workers, len(units)), context, _begin, (done_bytes, stop))
    try:
        futures = {pool.submit(_call, function, job, unit) for unit in units}
        reported = 0
        while futures:
            finished, futures = wait(futures, _POLL_SECONDS, FIRST_EXCEPTION)
            for future in finished:
                future.result()
            report(done_bytes.value - reported)
            reported = done_bytes.value
    except BrokenProcessPool:
        raise RuntimeError(
            "a prepare worker was killed (out of memory?); run the same command again, with fewer --workers"
        ) from None
    finally:
        stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> ForkServerContext:
    """The fork server imports the packages once and its children begin with them; it is itself a fresh
    process, so nothing of this one's threads is forked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.prepare.encode", "webdataset"])
    return context


def warm_up(workers: int) -> None:
    """Starts the fork server and its imports now, beside whatever this process does before the first unit."""
    if workers > 1:
        _context()
        forkserver.ensure_running()


def _begin(done_bytes: Any, stop: Any) -> None:
    global _done_bytes, _stop
    _done_bytes, _stop = done_bytes, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C and stops the workers
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """A worker must not outlive a parent that was killed: it would wait for work for ever."""
    wait_connections([sentinel])
    os._exit(1)


def _call(function: UnitFunction, job: Any, unit: Unit) -> None:
    def count(size_bytes: int) -> None:
        if _stop.value:
            raise _Stopped
        with _done_bytes.get_lock():
            _done_bytes.value += size_bytes

    _attempts(function, job, unit, _capped(count, unit.bytes))


def _attempts(function: UnitFunction, job: Any, unit: Unit, report: Report) -> None:
    """A unit that reads from a server is tried again: it keeps its finished shards, and a failure leaves no
    trace.
    """
    for _ in attempts(ATTEMPTS, PAUSE_SECONDS, PAUSE_FACTOR):
        try:
            return function(job, unit, report)
        except RuntimeError as error:
            if not unit.is_remote or isinstance(error.__cause__, FileNotFoundError | ImportError):
                raise
            last = error
    raise last


def _capped(report: Report, unit_bytes: int) -> Report:
    """Reports no more than the unit's bytes: what is read of a compressed file is more than the file."""
    left = unit_bytes

    def count(size_bytes: int) -> None:
        nonlocal left
        size_bytes = left if size_bytes < 0 else min(size_bytes, left)
        left -= size_bytes
        report(size_bytes)

    return count
