"""Pools of ranks for distributed tests: one per world size, kept for the whole session.

A process group costs seconds to start, so it is started once and then sent functions:

    def sum_of_ranks(context: RankContext, scale: float) -> float:      # module level: it is sent by name
        value = torch.tensor([scale * context.rank])
        torch.distributed.all_reduce(value)
        return value.item()

    def test_sum(ranks):
        assert ranks(4).run(sum_of_ranks, 2.0) == [12.0] * 4            # one result a rank, by rank

* Function, arguments and results travel by pickle; the function is imported by name in the worker, so what a
  test monkeypatches in its own process does not reach the ranks: patch inside the function.
* Every rank has the default gloo group, one thread, and torch seeded with 0 before each call. Groups that a
  function creates (a DeviceMesh's too) are destroyed after it.
* An exception on a rank fails the test as `RankFailure`, with the rank's number and traceback (the exception
  itself is `__cause__`). A call that takes longer than `timeout_seconds` fails with the stacks of those ranks
  that hang. Then the pool is killed and the next call gets a fresh one: after a failure no state is certain.
"""

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# What the fork server imports once, so that a rank starts in milliseconds instead of seconds.
PRELOAD = [
    "ranks",
    "torch",
    "torch.distributed",
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.tensor.parallel",
    "torch.optim",
    "pytest",
    "runs",
    "trainer.run",
]
START_SECONDS = 120.0
# How long the other ranks may take to answer once one has failed: they are usually stuck in a collective.
AFTER_FAILURE_SECONDS = 2.0


def share_cores() -> None:
    """Let this process and all that it starts run on until they wait, where the system allows it. Ranks
    outnumber the cores, and one that is interrupted whenever another's message comes loses its caches: a
    sixth of the time.
    """
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class RankFailure(Exception):
    """A function failed on some rank of a pool; the message holds that rank's traceback."""


@dataclass(frozen=True)
class RankContext:
    """Who a rank is: the first argument of every function that a pool runs."""

    rank: int
    world: int


class RankPool:
    """`world` processes with one gloo process group, which run one function after another."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, function: Callable[..., Any], *args: Any, timeout_seconds: float = 120.0) -> list[Any]:
        """Call `function(RankContext, *args)` on every rank and return the results by rank."""
        task = pickle.dumps((list(sys.path), os.getcwd(), pickle.dumps((function, args))))
        if not self._processes:
            self._start()
        finished = False
        try:
            for connection in self._connections:
                connection.send_bytes(task)
            results = self._collect(getattr(function, "__name__", str(function)), timeout_seconds)
            finished = True
            return results
        finally:
            # Also when the test is interrupted: a late answer would be taken for the next call's.
            if not finished:
                self.kill()

    def kill(self) -> None:
        """End every process at once; the next `run` starts new ones."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="germinal-ranks-")
        folder = Path(self._folder.name)
        for rank in range(self.world):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(rank, self.world, str(folder), theirs), name=f"rank-{rank}", daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        try:
            self._collect("the start of the pool", START_SECONDS)
        except BaseException:
            self.kill()
            raise

    def _collect(self, what: str, timeout_seconds: float) -> list[Any]:
        results: dict[int, Any] = {}
        failures: dict[int, tuple[str, BaseException | None]] = {}
        deadline = time.monotonic() + timeout_seconds
        while len(results) + len(failures) < self.world:
            waiting = {
                self._connections[rank]: rank
                for rank in range(self.world)
                if rank not in results and rank not in failures
            }
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = waiting[connection]  # type: ignore[index]
                ok, value = self._receive(rank)
                if ok:
                    results[rank] = value
                else:
                    failures[rank] = value
                    deadline = min(deadline, time.monotonic() + AFTER_FAILURE_SECONDS)
        if failures:
            rank, (text, cause) = next(iter(failures.items()))
            silent = [r for r in range(self.world) if r not in results and r not in failures]
            note = f"; ranks {silent} did not answer" if silent else ""
            raise RankFailure(f"rank {rank} of {self.world} failed in {what}{note}\n{text}") from cause
        if len(results) < self.world:
            silent = [r for r in range(self.world) if r not in results]
            stacks = self._stacks(silent)
            raise RankFailure(f"ranks {silent} hang in {what} after {timeout_seconds:g} s\n{stacks}")
        return [results[rank] for rank in range(self.world)]

    def _receive(self, rank: int) -> tuple[bool, Any]:
        try:
            ok, payload = pickle.loads(self._connections[rank].recv_bytes())
        except (EOFError, OSError):
            self._processes[rank].join(5)
            return False, (f"the process ended with {self._processes[rank].exitcode}", None)
        return ok, (pickle.loads(payload) if ok else (payload[0], _unpickled(payload[1])))

    def _stacks(self, silent: list[int]) -> str:
        assert self._folder is not None
        for rank in silent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._processes[rank].pid, signal.SIGUSR1)
        time.sleep(0.5)
        files = [Path(self._folder.name) / f"stack-{rank}" for rank in silent]
        return "\n".join(f"rank {rank}:\n{file.read_text()}" for rank, file in zip(silent, files))


class RankPools:
    """The pools of a session by world size: `ranks(4)` is the pool of four."""

    def __init__(self) -> None:
        self._pools: dict[int, RankPool] = {}

    def __call__(self, world: int) -> RankPool:
        return self._pools.setdefault(world, RankPool(world))

    def close(self) -> None:
        for pool in self._pools.values():
            pool.kill()


def _unpickled(payload: bytes | None) -> BaseException | None:
    if payload is None:
        return None
    with contextlib.suppress(Exception):
        return pickle.loads(payload)
    return None


def _serve(rank: int, world: int, folder: str, connection: Connection) -> None:
    """A rank's process: join the group, then run what it is sent until the other end closes."""
    import torch
    import torch.distributed as dist

    share_cores()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is pytest's to handle: it kills the pool
    stack_file = open(f"{folder}/stack-{rank}", "w")  # noqa: SIM115 (faulthandler needs it open for good)
    faulthandler.register(signal.SIGUSR1, file=stack_file, all_threads=False)
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(minutes=5))
    dist.barrier()
    # Collections come with every call, and one of all that torch imports costs a quarter of a second.
    gc.freeze()
    connection.send_bytes(pickle.dumps((True, pickle.dumps(None))))
    context = RankContext(rank, world)
    while True:
        try:
            task = connection.recv_bytes()
        except EOFError:
            os._exit(0)
        try:
            path, working_folder, call = pickle.loads(task)
            sys.path[:] = path
            os.chdir(working_folder)
            torch.manual_seed(0)
            function, args = pickle.loads(call)
            answer: tuple[bool, Any] = (True, pickle.dumps(function(context, *args)))
            del function, args
            _destroy_subgroups()
        except BaseException as error:
            answer = (False, (traceback.format_exc(), _pickled(error)))
        connection.send_bytes(pickle.dumps(answer))


def _pickled(error: BaseException) -> bytes | None:
    with contextlib.suppress(Exception):
        return pickle.dumps(error)
    return None


def _destroy_subgroups() -> None:
    """Every group holds sockets and threads: a session makes hundreds of meshes and would run out."""
    import torch.distributed as dist

    gc.collect()
    default = dist.group.WORLD
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not default:
            dist.destroy_process_group(group)
