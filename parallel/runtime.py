"""Who this process is: rank, world, device, group, stop signal. The only reader of environment variables."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

# (rank, world, local rank) under torchrun, accelerate and deepspeed; then SLURM; then Open MPI (deepspeed
# --launcher openmpi).
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    _SLURM,
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


@dataclass
class Runtime:
    """One rank. `stopping` turns true at the first SIGTERM or SIGUSR1 (SLURM's warning of a job's end)."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    stopping: bool = field(default=False)
    _previous: dict[int, Any] = field(default_factory=dict, repr=False)

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def watch_signals(self) -> None:
        """A signal only raises the flag, and the loop saves at the step's end; a second acts as before."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        signal.signal(number, self._previous.pop(number, signal.SIG_DFL))

    def stop(self, *, failed_with: int = 0) -> None:
        """Leave the process group and give signals back. Safe to call twice.

        `failed_with`: the exit code of a failure. With it a rank on a GPU ends here: NCCL's group waits,
        before it goes, for the work under way, and peers that are gone never do theirs.
        """
        while self._previous:
            signal.signal(*self._previous.popitem())
        if not dist.is_initialized():
            return
        if failed_with and self.device.type == "cuda":
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(failed_with)
        dist.destroy_process_group()


def start(*, timeout: timedelta = timedelta(minutes=10), env: Mapping[str, str] | None = None) -> Runtime:
    """Find out which rank this is and join the others; without a launcher, a single process without a group.

    The rendezvous is GERMINAL_INIT (a file:// or tcp:// address, set by the local launcher), else
    MASTER_ADDR and MASTER_PORT. Where srun started the ranks and these are not set, the address is the step's
    first node, on which srun starts rank 0, and the port one of 10000 to 29999 (below those that the system
    hands out), made from the numbers of the job and the step.

    Raises:
        ValueError: a launcher's variables are missing or contradict.
        RuntimeError: the ranks did not meet within `timeout`.
    """
    environ = os.environ if env is None else env
    rank, world, local_rank = _identity(environ)
    device = _device(environ, local_rank)
    runtime = Runtime(rank, world, local_rank, device)
    if world > 1 and not dist.is_initialized():
        init = environ.get("GERMINAL_INIT") or _address(environ, world)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            init_method=init,
            rank=rank,
            world_size=world,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    return runtime


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
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
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


def _address(environ: Mapping[str, str], world: int) -> str:
    known = _slurm_address(environ) if _launcher(environ) == _SLURM else {}
    known |= {key: environ[key] for key in ("MASTER_ADDR", "MASTER_PORT") if key in environ}
    if len(known) < 2:
        raise ValueError(
            f"a world of {world} ranks needs MASTER_ADDR and MASTER_PORT (or GERMINAL_INIT): start with "
            "torchrun, deepspeed, accelerate launch, srun or germinal train"
        )
    port = known["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"MASTER_PORT={port}: not a port, which is a number from 1 to 65535")
    return f"tcp://{known['MASTER_ADDR']}:{port}"


def _slurm_address(environ: Mapping[str, str]) -> dict[str, str]:
    """Where the ranks of a SLURM step meet; nothing outside a step, as in a batch script without srun."""
    step = environ.get("SLURM_STEP_ID")
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if step is None or not nodes:
        return {}
    # SLURM_LAUNCH_NODE_IPADDR is no help: srun itself may have been typed on a login node.
    port = 10000 + (int(environ.get("SLURM_JOB_ID", "0")) * 7 + int(step)) % 20000
    return {"MASTER_ADDR": _first_host(nodes), "MASTER_PORT": str(port)}


def _first_host(nodes: str) -> str:
    """The first host of a SLURM host list: `node[003-005,9],other` → `node003`."""
    first = re.match(r"(\[[^\]]*\]|[^,\[])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodes)


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
