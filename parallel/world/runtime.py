"""One rank of the world: its identity and device, how it joins the other ranks, and how its process ends.

From start to end of a rank:

    meet             identity (`launcher`) and device (`device`) from environment variables; find rank 0
                     (`rendezvous`, `meeting`) and connect to it (`presence`), so that a rank's end is noticed
    Runtime.join     wait until all ranks have come, and make the process group
    mark_under_way   after the first step; from now on ranks that are asked to stop leave together
    announce_exit    tell the other ranks the exit code
    stop             leave the process group

A rank whose peer has ended is ended from a thread (`Runtime._follow`), because its main thread waits in a
collective for that peer. Under `germinal train --nproc` that is left to their supervisor: a rank learns of
the end of another, but does not end for it.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from common.exit_codes import ASKED_TO_STOP, FAILED
from parallel.relied_on import replace
from parallel.world import slurm
from parallel.world.addresses import interface_of
from parallel.world.arrivals import Departure
from parallel.world.device import device_of, gpu_id
from parallel.world.ending import end_process, end_with_parent, within
from parallel.world.environment import connect_when_needed, use_interface
from parallel.world.launcher import (
    SLURM,
    cpus_per_task,
    identity,
    is_child_of_launcher,
    launcher_variables,
)
from parallel.world.meeting import begin
from parallel.world.meeting.find_rank_0 import find_rank_0
from parallel.world.presence import Presence
from parallel.world.rendezvous import LOOPBACK, place

# How long this rank may take to end by itself after another: while it runs, and before its first step.
GRACE_SECONDS = 10.0
START_GRACE_SECONDS = 2.0
LOST_GRACE_SECONDS = 3.0  # the same where the other rank died without a word: nobody has said yet
# How long ranks wait for each other where no config says so.
TIMEOUT = timedelta(minutes=10)
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
    cpus: of this rank, where SLURM gives each task a number of them (--cpus-per-task); else 0.
    is_supervised: our supervisor ends the ranks when one has ended, and shows one error of many.
    presence: messages to and from the other ranks, beside the collectives.
    on_lost: called before this process ends because another rank has ended, and its main thread waits.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    stopping: bool = field(default=False)
    is_under_way: bool = field(default=False)
    has_reported: bool = field(default=False)
    chooses_threads: bool = field(default=False)
    cpus: int = field(default=0)
    is_supervised: bool = field(default=False)
    on_lost: Callable[[Departure], None] = field(default=lambda left: None, repr=False)
    _report_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _note_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _has_noted: bool = field(default=False, repr=False)
    presence: Presence = field(init=False, repr=False)
    _timeout: timedelta = field(default=TIMEOUT, repr=False)
    _hosts: Callable[[int], str] = field(default=lambda rank: "", repr=False)  # of ranks that do not come
    _supervisor: int = field(default=-1, repr=False)  # descriptor of the pipe to our supervisor

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
        """Wait until all ranks have come, and make the process group of all. Collective.

        The group's store is rank 0's own, at a port that the system chooses.

        ValueError, on every rank, where the ranks do not fit together: another number of ranks, another kind
        of device, a shared GPU. RuntimeError where some do not come in time.
        """
        if dist.is_initialized():
            return
        every_group_waits(self._timeout)
        if self.world == 1:
            return
        patience_seconds = self._timeout.total_seconds()
        if self.rank == 0:
            begin.gather(self.presence, patience_seconds=patience_seconds, hosts=self._hosts)
            server = begin.open_store(self.presence)
            own, port = server.getsockname()[:2]
            # The store takes the descriptor over. It is there before another rank asks for it.
            everywhere = own in ("::", "0.0.0.0")
            store = self._store(LOOPBACK if everywhere else own, port, listener=server.detach())
            _, interface = begin.begin(self.presence, port)
        else:
            address, port, interface = begin.await_beginning(self.presence, patience_seconds=patience_seconds)
            store = self._store(address, port)
        use_interface(interface)
        connect_when_needed()
        # Not bound to a device, where all ranks together would split each group off the world's.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.world,
            timeout=self._timeout,
        )

    def _store(self, host: str, port: int, *, listener: int | None = None) -> dist.Store:
        return dist.TCPStore(
            host,
            port,
            self.world,
            is_master=listener is not None,
            timeout=self._timeout,
            wait_for_workers=False,
            master_listen_fd=listener,
        )

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
        if self.world > 1:
            together = code == 0 or (code in ASKED_TO_STOP and self.is_under_way and not why)
            self.presence.leave(code, why, agreed=together, awaits_late=not self.is_supervised)

    def first_departure(self, patience_seconds: float = 1.0) -> Departure | None:
        """The first rank that has ended without the others, whose end may have caused this rank's error."""
        if self.world == 1:
            return None
        return self.presence.first_departure(patience_seconds)

    def should_report(self, left: Departure) -> bool:
        """Whether this rank writes the line about another rank's end.

        A rank that ended with an exit code has written its own line. About a rank that died without one, our
        supervisor writes the line; without it rank 0 does, and about rank 0 every other rank.
        """
        return left.code is None and 0 in (self.rank, left.rank) and not self.is_supervised

    def takes_note(self, left: Departure) -> bool:
        """Whether this rank records the end of another in the run folder: once, where that rank died without
        a word. Rank 0 does; of rank 0's own end rank 1, unless the link to it is cut, since rank 0 may then
        record the end of rank 1.
        """
        mine = self.rank == 0 or (left.rank == 0 and self.rank == 1 and not left.out_of_reach)
        with self._note_lock:
            first, self._has_noted = not self._has_noted, self._has_noted or (mine and left.code is None)
        return first and mine and left.code is None

    @contextlib.contextmanager
    def reporting(self, *, seconds: float = -1) -> Iterator[None]:
        """Hold off this process's end while it reports; wait `seconds` for another thread's report, or -1."""
        held = self._report_lock.acquire(timeout=seconds)
        try:
            yield
            self.has_reported = True
        finally:
            if held:
                self._report_lock.release()

    def wait_while_reporting(self) -> None:
        """Wait while another thread of this rank reports a failure, which may end the process."""
        with self._report_lock:
            pass

    def _follow(self, left: Departure) -> None:
        """End this process because another rank has ended, unless all ranks leave together anyway."""
        if left.agreed or self.is_supervised:
            return
        # This rank may fail too, by the same fault or for want of that rank, and report that itself.
        if left.code not in ASKED_TO_STOP:
            grace_seconds = LOST_GRACE_SECONDS if left.code is None else GRACE_SECONDS
            time.sleep(grace_seconds if self.is_under_way else START_GRACE_SECONDS)
        code = FAILED if left.code is None else left.code
        self._report_lock.acquire(timeout=REPORT_SECONDS)  # held where this rank is writing its line
        # A rank that has reported is closing files and groups, and may wait there for ranks that are gone.
        if not self.has_reported:
            within(REPORT_SECONDS, lambda: self.on_lost(left))  # in the run folder; the line says the same
        end_process("" if self.has_reported or not self.should_report(left) else f"{left}", code)

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


def every_group_waits(timeout: timedelta) -> None:
    """Have every process group wait `timeout` in a collective, those of torch's meshes and DeepSpeed too."""
    replace("torch", distributed_c10d, default_pg_timeout=timeout, default_pg_nccl_timeout=timeout)


def start(*, timeout: timedelta = TIMEOUT, env: Mapping[str, str] | None = None) -> Runtime:
    """`meet`, then `Runtime.join`."""
    runtime = meet(timeout=timeout, env=env)
    runtime.join()
    return runtime


def meet(
    *, timeout: timedelta = TIMEOUT, env: Mapping[str, str] | None = None, parent: int | None = None
) -> Runtime:
    """Find out which rank this is and connect to rank 0, so that the end of any rank is noticed by all.

    Without a launcher: a single process. Where the ranks meet: `rendezvous.place`.

    timeout: for all ranks to come, and of every collective of every group.
    env: instead of this process's environment variables.
    parent: this process's parent when the process began; None: the present one.

    Raises:
        ValueError: a launcher's variables are missing or contradict, or rank 0 has another number of ranks.
        RuntimeError: rank 0 was not there within `timeout`, or the name of its machine has no address.
    """
    environ = os.environ if env is None else env
    rank, world, local_rank = identity(environ)
    device = device_of(environ, local_rank)
    runtime = Runtime(rank, world, local_rank, device, chooses_threads="OMP_NUM_THREADS" not in environ)
    runtime._timeout = timeout
    runtime.cpus = cpus_per_task(environ)
    parent = parent or os.getppid()
    if is_child_of_launcher(environ) and parent > 1:
        end_with_parent(rank, parent, lambda: runtime.stopping)
    runtime._supervisor = int(environ.get("GERMINAL_UNDER_WAY", "-1"))
    if world > 1 and not dist.is_initialized():
        runtime.is_supervised = "GERMINAL_INIT" in environ
        by_srun = launcher_variables(environ) == SLURM
        runtime._hosts = begin.hosts_of(environ, by_srun=by_srun)
        find_rank_0(
            runtime.presence,
            place(environ, world),
            {"device": device.type, "gpu": gpu_id(device)},
            timeout=timeout,
            otherwise=slurm.node_address if by_srun else lambda name: "",
            speaks=not runtime.is_supervised and (local_rank == 0 or rank == 1),  # one rank a machine
        )
    elif world == 1 and env is None:
        use_interface(interface_of(LOOPBACK))  # the engines make a group of one rank
    return runtime
