"""Who this process is: rank, world, device, group, stop signal. The only reader of environment variables."""

import contextlib
import os
import signal
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
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
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

    def stop(self) -> None:
        """Leave the process group and give signals back. Safe to call twice."""
        while self._previous:
            signal.signal(*self._previous.popitem())
        if dist.is_initialized():
            dist.destroy_process_group()


def start(*, timeout: timedelta = timedelta(minutes=10), env: Mapping[str, str] | None = None) -> Runtime:
    """Find out which rank this is and join the others; without a launcher, a single process without a group.

    The rendezvous is GERMINAL_INIT (a file:// or tcp:// address, set by the local launcher), else
    MASTER_ADDR and MASTER_PORT, which SLURM jobs get from `germinal submit`. ValueError if a launcher's
    variables contradict.
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


def _identity(environ: Mapping[str, str]) -> tuple[int, int, int]:
    for rank_key, world_key, local_key in _LAUNCHERS:
        if rank_key not in environ or world_key not in environ:
            continue
        try:
            rank, world = int(environ[rank_key]), int(environ[world_key])
            local_rank = int(environ.get(local_key, "0"))
        except ValueError:
            raise ValueError(
                f"{rank_key}={environ[rank_key]}, {world_key}={environ[world_key]}: not numbers; "
                "start with a launcher"
            ) from None
        if not 0 <= rank < world:
            raise ValueError(f"{rank_key}={rank} is outside {world_key}={world}")
        return rank, world, local_rank
    return 0, 1, 0


def _device(environ: Mapping[str, str], local_rank: int) -> torch.device:
    wanted = environ.get("GERMINAL_DEVICE", "")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}; "
            "start fewer ranks a node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _address(environ: Mapping[str, str], world: int) -> str:
    if "MASTER_ADDR" not in environ or "MASTER_PORT" not in environ:
        raise ValueError(
            f"a world of {world} ranks needs MASTER_ADDR and MASTER_PORT (or GERMINAL_INIT): start with "
            "torchrun, deepspeed, accelerate launch, germinal train or germinal submit"
        )
    return f"tcp://{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"


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
