"""Who this process is: rank, world, device, group; who else is there. The only reader of environment
variables.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from common.exit_codes import ASKED_TO_STOP, FAILED
from parallel.world.presence import Departure, Presence
from parallel.world.rendezvous import address, compare_devices

# (rank, world, local rank) under torchrun, accelerate and deepspeed; then SLURM; then Open MPI (deepspeed
# --launcher openmpi).
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    _SLURM,
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)

# Variables of launchers that are the parent of their ranks: our supervisor, torchrun and accelerate, srun,
# Open MPI, deepspeed. A rank that was started by hand may outlive its shell.
_PARENTS = ("GERMINAL_INIT", "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK", "CROSS_RANK")
_PARENT_SECONDS = 2.0

# How long a rank that hears of another's end may take to end by itself: running, and before its first step.
GRACE_SECONDS = 10.0
START_GRACE_SECONDS = 2.0
# How long a rank may take to write down why it ends.
REPORT_SECONDS = 10.0


@dataclass
class Runtime:
    """One rank. `stopping`: it was asked to stop, and the loop saves at the step's end. `has_reported`: it
    has failed and its line is written, by itself or by another rank, so another rank's end is not to be told
    any more. `chooses_threads`: nobody has said how many CPU threads it computes with.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    stopping: bool = field(default=False)
    is_under_way: bool = field(default=False)
    has_reported: bool = field(default=False)
    _report_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    chooses_threads: bool = field(default=False)
    _presence: Presence | None = field(default=None, repr=False)
    _supervisor: int = field(default=-1, repr=False)  # descriptor of its pipe
    _group: dict[str, Any] = field(default_factory=dict, repr=False)  # what the process group is made with

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    @property
    def threads(self) -> int:
        """CPU threads that this rank computes with: on a CPU, sums depend on them in their last bits."""
        return torch.get_num_threads()

    def join(self) -> None:
        """Meet the other ranks in a process group. ValueError, on every rank, where one has another kind of
        device; RuntimeError where they do not come in time.
        """
        if "store" in self._group:
            compare_devices(self._group["store"], self.rank, self.world, self.device.type)
        if self._group:
            dist.init_process_group(**self._group)

    def stop_at_next_step(self) -> None:
        """Raise the flag `stopping`."""
        self.stopping = True

    def mark_under_way(self) -> None:
        """The first step is done, so all ranks have begun: they leave together from here on."""
        if self.is_under_way:
            return
        self.is_under_way = True
        if self._supervisor >= 0:
            with contextlib.suppress(OSError):
                os.write(self._supervisor, f"{self.rank}\n".encode())

    def announce_exit(self, code: int, why: str = "") -> None:
        """Tell the other ranks that this one ends, with its exit code; `why` where it does so alone."""
        if self._presence is not None:
            together = code == 0 or (code in ASKED_TO_STOP and self.is_under_way and not why)
            self._presence.leave(code, why, agreed=together)

    def first_departure(self, patience_seconds: float = 1.0) -> Departure | None:
        """The rank whose end is the cause, where an error here may be its effect."""
        return self._presence.first_departure(patience_seconds) if self._presence is not None else None

    def should_report(self, left: Departure) -> bool:
        """Whether this rank is the one to say that another has left: each with an exit code has said why; of
        one that is gone without a word rank 0 says it, and of rank 0 every rank.
        """
        return left.code is None and 0 in (self.rank, left.rank)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """What is written meanwhile is why this rank ends: no other thread ends it first, nor repeats it."""
        with self._report_lock:
            yield
            self.has_reported = True

    def _follow(self, left: Departure) -> None:
        """Another rank is gone: where all were to leave, this one does it by itself; else it follows."""
        if left.agreed:
            return
        # What fails here too, or for want of that rank, has words of its own.
        if left.code not in ASKED_TO_STOP:
            time.sleep(GRACE_SECONDS if self.is_under_way else START_GRACE_SECONDS)
        code = FAILED if left.code is None else left.code
        self._report_lock.acquire(timeout=REPORT_SECONDS)  # where this rank is just saying why
        # Where this rank has said why, it is closing what was open, which waits for ranks that are gone.
        if self.has_reported or not self.should_report(left):
            os._exit(code)
        _end(f"{left}", code)

    def _watch_parent(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        _end(
            f"rank {self.rank}: its launcher (process {parent}) is gone, and so nobody watches over it",
            FAILED,
        )

    def stop(self, *, failed_with: int = 0) -> None:
        """Leave the process group. Safe to call twice.

        `failed_with`: the exit code of a failure. With it a rank on a GPU ends here: NCCL's group waits,
        before it goes, for the work under way, and peers that are gone never do theirs.
        """
        if not dist.is_initialized():
            return
        if failed_with and self.device.type == "cuda":
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(failed_with)
        dist.destroy_process_group()


def start(*, timeout: timedelta = timedelta(minutes=10), env: Mapping[str, str] | None = None) -> Runtime:
    """`meet` and `Runtime.join`."""
    runtime = meet(timeout=timeout, env=env)
    runtime.join()
    return runtime


def meet(*, timeout: timedelta = timedelta(minutes=10), env: Mapping[str, str] | None = None) -> Runtime:
    """Find out which rank this is and reach the others, so that each hears of the end of one; without a
    launcher, a single process. `join` is what makes them a process group.

    The rendezvous is GERMINAL_INIT (a file:// or tcp:// address, set by the local launcher), else
    MASTER_ADDR and MASTER_PORT. Where srun started the ranks and these are not set, the address is the step's
    first node, on which srun starts rank 0, and the port one of 10000 to 29999 (below those that the system
    hands out), made from the numbers of the job and the step.

    Raises:
        ValueError: a launcher's variables are missing or contradict.
        RuntimeError: rank 0 was not there within `timeout`.
    """
    environ = os.environ if env is None else env
    rank, world, local_rank = _identity(environ)
    device = _device(environ, local_rank)
    runtime = Runtime(rank, world, local_rank, device, chooses_threads="OMP_NUM_THREADS" not in environ)
    if any(name in environ for name in _PARENTS) and os.getppid() > 1:
        threading.Thread(target=runtime._watch_parent, name="parent", daemon=True).start()
    runtime._supervisor = int(environ.get("GERMINAL_UNDER_WAY", "-1"))
    if world > 1 and not dist.is_initialized():
        init = environ.get("GERMINAL_INIT") or address(environ, world, by_srun=_launcher(environ) == _SLURM)
        runtime._group = {
            "backend": "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            "rank": rank,
            "world_size": world,
            "timeout": timeout,
            "device_id": device if device.type == "cuda" else None,
        }
        if init.startswith("file://"):  # its supervisor watches
            runtime._group["init_method"] = init
        else:
            shared = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            runtime._group["store"] = _reach(runtime, init, timeout, server=rank == 0 and not shared)
    return runtime


def _reach(runtime: Runtime, init: str, timeout: timedelta, *, server: bool) -> dist.Store:
    """What this start of the ranks has of the store at `init`, tcp://HOST:PORT; and their presence, which
    meet through it.

    RuntimeError where rank 0 of this start is not there in time.
    """
    at = urlsplit(init)
    assert at.hostname and at.port, init
    tcp = dist.TCPStore(
        at.hostname,
        at.port,
        runtime.world,
        is_master=server,
        timeout=timeout,
        wait_for_workers=False,  # a rank that does not come is noticed below
        multi_tenant=True,
    )
    presence = Presence(runtime.rank, runtime.world, runtime._follow)
    if runtime.rank == 0:
        tcp.set("germinal/presence", presence.listen(at.hostname, at.port))
    else:
        presence.join(
            at.hostname,
            lambda: tcp.get("germinal/presence").decode(),
            patience_seconds=timeout.total_seconds(),
        )
    runtime._presence = presence
    # A launcher's store may hold what ranks of an earlier start put there, such as gloo's addresses.
    return dist.PrefixStore(f"germinal/{presence.key}", tcp)


def _end(why: str, code: int) -> NoReturn:
    """End this process from whatever thread; the others wait for what never comes."""
    with contextlib.suppress(OSError):  # who read it may be gone as well
        os.write(2, f"error: {why}\n".encode())
    os._exit(code)


def _launcher(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The names of the variables by which a launcher says who we are; None without one."""
    return next((keys for keys in _LAUNCHERS if keys[0] in environ and keys[1] in environ), None)


def _identity(environ: Mapping[str, str]) -> tuple[int, int, int]:
    keys = _launcher(environ)
    if keys is None:
        return 0, 1, 0
    found = {key: environ[key] for key in keys if key in environ}
    try:
        rank, world, local_rank = (int(found.get(key, "0")) for key in keys)
    except ValueError:
        told = ", ".join(f"{key}={value}" for key, value in found.items())
        raise ValueError(f"{told}: not numbers; start with a launcher") from None
    if not 0 <= rank < world:
        raise ValueError(f"{keys[0]}={rank} is outside {keys[1]}={world}")
    return rank, world, local_rank


def _device(environ: Mapping[str, str], local_rank: int) -> torch.device:
    wanted = environ.get("GERMINAL_DEVICE", "")
    if wanted not in ("", "cpu", "cuda"):
        raise ValueError(
            f"GERMINAL_DEVICE={wanted}: choose cpu or cuda, or unset it: cuda where there is one"
        )
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"GERMINAL_DEVICE=cuda: torch {torch.__version__} finds no CUDA device on this machine; see "
            "nvidia-smi and CUDA_VISIBLE_DEVICES, or choose cpu"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    _let_segments_grow()
    count = torch.cuda.device_count()
    if count == 1 and _launcher(environ) == _SLURM:
        local_rank = 0  # with --gpus-per-task each task sees its own only
    if local_rank >= count:
        raise ValueError(
            f"local rank {local_rank} has no GPU: this machine has {count}; start fewer ranks a node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _let_segments_grow() -> None:
    """Have the CUDA allocator map memory behind what a segment has, unless the user has set it otherwise.

    Blocks that FSDP's streams free at fixed sizes leave gaps that fit nothing which comes next. Torch reads
    the variable at the first allocation, so this comes before one (torch's notes on CUDA semantics).
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


@contextlib.contextmanager
def environment(values: Mapping[str, str], *, programs: Path | None = None) -> Iterator[None]:
    """Variables set, and `programs` found on the PATH, then as before: for libraries told in no other way."""
    values = dict(values)
    if programs is not None:
        values["PATH"] = os.pathsep.join((str(programs), os.environ.get("PATH", os.defpath)))
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
