"""Where the ranks of a run look for rank 0, by the launcher's variables. Imports no torch, sends nothing."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from parallel.world import slurm
from parallel.world.launcher import SLURM, launcher_variables

LOOPBACK = "127.0.0.1"
_START = "start with torchrun, deepspeed, accelerate launch, srun or germinal train"


@dataclass(frozen=True)
class Place:
    """Where the ranks look for rank 0.

    host: name or address of rank 0's machine; of the machine with the store, where `announced`.
    ports: at which rank 0 listens: the first that is free. With `announced` the port of the store.
    key: what the ranks of this start say to each other; one key, one start. Empty: the port alone tells.
    announced: a launcher's store is at `host`, and rank 0 writes into it where it listens.
    one_machine: the launcher has said that all ranks are on one machine.
    listener: descriptor of a socket that listens for rank 0 already; -1 without one.
    """

    host: str
    ports: tuple[int, ...]
    key: str = ""
    announced: bool = False
    one_machine: bool = False
    listener: int = -1


def place(environ: Mapping[str, str], world: int) -> Place:
    """Find the place, from the first of these that is there:

    GERMINAL_INIT, tcp://HOST:PORT, of `germinal train`; GERMINAL_LISTENER is rank 0's socket there.
    The store of torchrun's agent, which `accelerate launch` has too.
    MASTER_ADDR and MASTER_PORT, of deepspeed, Open MPI, or by hand.
    A step of srun: on its first node, where srun starts rank 0, at one of `slurm.ports`.

    ValueError where there is nothing of this, or MASTER_PORT is no port.
    """
    if init := environ.get("GERMINAL_INIT"):
        at = urlsplit(init)
        assert at.hostname and at.port, init
        listener = int(environ.get("GERMINAL_LISTENER", "-1"))
        return Place(at.hostname, (at.port,), one_machine=True, listener=listener)
    alone = on_one_machine(environ, world)
    by_srun = launcher_variables(environ) == SLURM and slurm.is_task_of_srun(environ)
    host, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    key = slurm.step_key(environ) if by_srun else ""
    if by_srun:
        # SLURM_LAUNCH_NODE_IPADDR is no help: srun itself may have been typed on a login node.
        host = host or next(iter(slurm.nodes(environ)), "")
    if not host or not (port or by_srun):
        raise ValueError(
            f"a world of {world} ranks needs MASTER_ADDR and MASTER_PORT (or GERMINAL_INIT): {_START}"
        )
    if port and (not port.isdecimal() or not 0 < int(port) < 1 << 16):
        raise ValueError(f"MASTER_PORT={port}: not a port, which is a number from 1 to 65535")
    return Place(
        host=host.removeprefix("[").removesuffix("]"),  # IPv6, which a URL has in brackets
        ports=(int(port),) if port else slurm.ports(key),
        key=key,
        announced=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        one_machine=alone,
    )


def on_one_machine(environ: Mapping[str, str], world: int) -> bool:
    """Whether the launcher says that this machine has all ranks; False where it does not say.

    torchrun, accelerate: LOCAL_WORLD_SIZE; deepspeed: LOCAL_SIZE; Open MPI and SLURM have names of their own.
    """
    keys = launcher_variables(environ)
    if keys == SLURM:
        return (environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES")) == "1"
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if keys and keys[0] == "RANK" else ()
    local = next((environ[name] for name in (*names, "OMPI_COMM_WORLD_LOCAL_SIZE") if name in environ), "")
    return local == str(world)


def unlike(devices: Mapping[int, str]) -> str:
    """The first rank that computes on another kind of device than rank 0, in words; empty where none does.

    Compared before the process group is made: a rank on a GPU reduces by NCCL, a rank on a CPU by gloo, and
    they would wait for each other until a time-out.

    devices: rank → kind of device, such as cuda.
    """
    for rank, kind in sorted(devices.items()):
        if kind != devices[0]:
            return (
                f"rank {rank} computes on {kind}, rank 0 on {devices[0]}: see nvidia-smi and "
                "CUDA_VISIBLE_DEVICES on the machine without a GPU, or set GERMINAL_DEVICE to the same on "
                "every rank"
            )
    return ""


def shared(gpus: Mapping[int, tuple[str, str]]) -> str:
    """Two ranks that would compute on one GPU, in words; empty where each has its own.

    gpus: rank → (machine, the GPU's unique id; empty on a CPU).
    """
    seen: dict[tuple[str, str], int] = {}
    for rank, (machine, gpu) in sorted(gpus.items()):
        if gpu and (first := seen.setdefault((machine, gpu), rank)) != rank:
            return (
                f"ranks {first} and {rank} on {machine} would compute on one GPU ({gpu}): start as many "
                "ranks a machine as it has GPUs, and give each its own (srun --gpus-per-task=1, or no "
                "CUDA_VISIBLE_DEVICES)"
            )
    return ""


def missing(absent: list[int], hosts: Mapping[int, str], world: int) -> str:
    """Ranks that have not come, in words: `ranks 1 (n1), 3 (n2) and 4 more of 8`.

    hosts: rank → its machine, as far as that is known.
    """
    named = [f"{rank} ({hosts[rank]})" if hosts.get(rank) else str(rank) for rank in absent[:8]]
    more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
    return f"rank{'s' * (len(absent) > 1)} {', '.join(named)}{more} of {world}"


def until(deadline: float) -> str:
    """When waiting for ranks ends, as a time of this machine's clock. deadline: `time.monotonic`."""
    at = datetime.now() + timedelta(seconds=deadline - time.monotonic())
    return f"until {at:%H:%M:%S} (parallel.timeout_seconds)"
