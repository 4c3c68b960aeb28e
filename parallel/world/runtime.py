"""One rank of the world: its identity and device, how it joins the other ranks, and how its process ends.

From start to end of a rank:

    meet             identity (`launcher`) and device (`device`) from environment variables; reach rank 0
                     (`rendezvous`), and connect to it (`presence`), so that a rank's end is noticed
    Runtime.join     make the process group
    mark_under_way   after the first step; from now on ranks that are asked to stop leave together
    announce_exit    tell the other ranks the exit code
    stop             leave the process group

A rank whose peer has ended is ended from a thread (`Runtime._follow`), because its main thread waits in a
collective for that peer. Under `germinal train --nproc` that is left to their supervisor, and presence
carries messages only.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from common.exit_codes import ASKED_TO_STOP, FAILED
from parallel.world import meeting
from parallel.world.device import device_of
from parallel.world.ending import end_process, end_with_parent
from parallel.world.launcher import SLURM, identity, is_child_of_launcher, launcher_variables
from parallel.world.presence import Departure, Presence
from parallel.world.rendezvous import address, compare_devices

# After another rank's end, how long this rank may take to end by itself: while it runs, and before its first
# step.
GRACE_SECONDS = 10.0
START_GRACE_SECONDS = 2.0
# How long a rank may take to write the line about its failure.
REPORT_SECONDS = 10.0


@dataclass
class Runtime:
    """One rank, and what it learns of the other ranks.

    rank: 0 … world - 1.
    world: number of ranks.
    local_rank: among the ranks of this machine.
    device: what the rank computes on.
    stopping: the rank was asked to stop; the loop saves at the end of the step.
    is_under_way: the first step is done.
    has_reported: the failure has its line on standard error, written by this rank or another, so this rank
        writes no line about another rank's end.
    chooses_threads: the user has not set the number of CPU threads.
    presence: messages to and from the other ranks, beside the collectives.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    stopping: bool = field(default=False)
    is_under_way: bool = field(default=False)
    has_reported: bool = field(default=False)
    chooses_threads: bool = field(default=False)
    _report_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    presence: Presence = field(init=False, repr=False)
    _supervised: bool = field(default=False, repr=False)  # the launcher ends the ranks when one has ended
    _supervisor: int = field(default=-1, repr=False)  # descriptor of the pipe to our supervisor
    _group: dict[str, Any] = field(default_factory=dict, repr=False)  # arguments of init_process_group

    def __post_init__(self) -> None:
        self.presence = Presence(self.rank, self.world, self._follow)

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    @property
    def threads(self) -> int:
        """Number of CPU threads that torch computes with; on a CPU the last bits of sums depend on it."""
        return torch.get_num_threads()

    def join(self) -> None:
        """Make the process group of all ranks. Collective.

        ValueError, on every rank, where one rank has another kind of device. RuntimeError where some ranks do
        not come in time.
        """
        if "store" in self._group:
            compare_devices(self._group["store"], self.rank, self.world, self.device.type)
        if self._group:
            dist.init_process_group(**self._group)

    def stop_at_next_step(self) -> None:
        """Set `stopping`."""
        self.stopping = True

    def mark_under_way(self) -> None:
        """Record that the first step is done: all ranks have begun, and leave together from now on."""
        if self.is_under_way:
            return
        self.is_under_way = True
        if self._supervisor >= 0:
            with contextlib.suppress(OSError):
                os.write(self._supervisor, f"{self.rank}\n".encode())

    def announce_exit(self, code: int, why: str = "") -> None:
        """Tell the other ranks that this rank ends, and with which exit code.

        why: the reason, where this rank was asked to stop and the others were not.
        """
        if not self._supervised and self.world > 1:
            together = code == 0 or (code in ASKED_TO_STOP and self.is_under_way and not why)
            self.presence.leave(code, why, agreed=together)

    def first_departure(self, patience_seconds: float = 1.0) -> Departure | None:
        """The first rank that has ended without the others, whose end may have caused this rank's error."""
        if self._supervised or self.world == 1:
            return None
        return self.presence.first_departure(patience_seconds)

    def should_report(self, left: Departure) -> bool:
        """Whether this rank writes the line about another rank's end.

        A rank that ended with an exit code has written its own line. About a rank that died without one,
        rank 0 writes the line; about rank 0, every other rank.
        """
        return left.code is None and 0 in (self.rank, left.rank)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Hold off the end of the process while this rank writes the line about its failure."""
        with self._report_lock:
            yield
            self.has_reported = True

    def _follow(self, left: Departure) -> None:
        """End this process because another rank has ended, unless all ranks leave together anyway."""
        if left.agreed or self._supervised:
            return
        # This rank may fail too, by the same fault or for want of that rank, and report that itself.
        if left.code not in ASKED_TO_STOP:
            time.sleep(GRACE_SECONDS if self.is_under_way else START_GRACE_SECONDS)
        code = FAILED if left.code is None else left.code
        self._report_lock.acquire(timeout=REPORT_SECONDS)  # held where this rank is writing its line
        # A rank that has reported is closing files and groups, and may wait there for ranks that are gone.
        if self.has_reported or not self.should_report(left):
            os._exit(code)
        end_process(f"{left}", code)

    def stop(self, *, failed_with: int = 0) -> None:
        """Leave the process group. Safe to call twice.

        failed_with: the exit code of a failure; 0 without one. After a failure a rank on a GPU ends here:
        NCCL's group waits for the collectives under way, and peers that are gone never complete theirs.
        """
        if not dist.is_initialized():
            return
        if failed_with and self.device.type == "cuda":
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(failed_with)
        dist.destroy_process_group()


def start(*, timeout: timedelta = timedelta(minutes=10), env: Mapping[str, str] | None = None) -> Runtime:
    """`meet`, then `Runtime.join`."""
    runtime = meet(timeout=timeout, env=env)
    runtime.join()
    return runtime


def meet(*, timeout: timedelta = timedelta(minutes=10), env: Mapping[str, str] | None = None) -> Runtime:
    """Find out which rank this is and connect to rank 0, so that the end of any rank is noticed by all.

    Without a launcher: a single process. `Runtime.join` makes the process group.

    The rendezvous is GERMINAL_INIT (a file:// or tcp:// address, set by the local launcher), else
    MASTER_ADDR and MASTER_PORT. Where srun started the ranks and these are not set, see
    `rendezvous.address`.

    timeout: for rank 0 to be there, and of every collective of the world's group.
    env: instead of this process's environment variables.

    Raises:
        ValueError: a launcher's variables are missing or contradict.
        RuntimeError: rank 0 was not there within `timeout`.
    """
    environ = os.environ if env is None else env
    rank, world, local_rank = identity(environ)
    device = device_of(environ, local_rank)
    runtime = Runtime(rank, world, local_rank, device, chooses_threads="OMP_NUM_THREADS" not in environ)
    if is_child_of_launcher(environ) and os.getppid() > 1:
        end_with_parent(rank, lambda: runtime.stopping)
    runtime._supervisor = int(environ.get("GERMINAL_UNDER_WAY", "-1"))
    if world > 1 and not dist.is_initialized():
        init = environ.get("GERMINAL_INIT") or address(
            environ, world, by_srun=launcher_variables(environ) == SLURM
        )
        runtime._group = {
            "backend": "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            "rank": rank,
            "world_size": world,
            "timeout": timeout,
            "device_id": device if device.type == "cuda" else None,
        }
        runtime._supervised = init.startswith("file://")
        runtime._group["store"] = _reach(runtime, init, environ, timeout)
    return runtime


def _reach(runtime: Runtime, init: str, environ: Mapping[str, str], timeout: timedelta) -> dist.Store:
    """Open the store at `init`, tcp://HOST:PORT or file://PATH, and connect this rank's presence through it.

    Return a view of the store with the keys of this start of the ranks. RuntimeError where rank 0 of this
    start is not there within `timeout`.
    """
    at = urlsplit(init)
    host, port = at.hostname or "127.0.0.1", at.port or 1
    store: dist.Store
    if at.scheme == "file":
        store = dist.FileStore(at.path, runtime.world)
    else:
        store = dist.TCPStore(
            host,
            port,
            runtime.world,
            is_master=runtime.rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            timeout=timeout,
            wait_for_workers=False,  # `compare_devices` names a rank that does not come
            multi_tenant=True,
        )
    if runtime.rank == 0:
        store.set("germinal/presence", meeting.listen(runtime.presence, host, port))
    else:
        meeting.join(
            runtime.presence,
            host,
            lambda: store.get("germinal/presence").decode(),
            patience_seconds=timeout.total_seconds(),
        )
    # A launcher's store may hold what ranks of an earlier start put there, such as gloo's addresses.
    return dist.PrefixStore(f"germinal/{runtime.presence.key}", store)
