"""Where the ranks of a run meet, and whether they fit together. Imports no torch."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store


def address(environ: Mapping[str, str], world: int, *, by_srun: bool) -> str:
    """tcp://HOST:PORT from MASTER_ADDR and MASTER_PORT in `environ`; with `by_srun` also from a SLURM step.

    Of a SLURM step the host is the first node, on which srun starts rank 0. The port is one of 10000 to 29999
    (below the ports that the system hands out), made from the numbers of the job and the step.

    ValueError where the variables are not there, or MASTER_PORT is no port.
    """
    known = _slurm_address(environ) if by_srun else {}
    known |= {key: environ[key] for key in ("MASTER_ADDR", "MASTER_PORT") if key in environ}
    if len(known) < 2:
        raise ValueError(
            f"a world of {world} ranks needs MASTER_ADDR and MASTER_PORT (or GERMINAL_INIT): start with "
            "torchrun, deepspeed, accelerate launch, srun or germinal train"
        )
    port = known["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"MASTER_PORT={port}: not a port, which is a number from 1 to 65535")
    host = known["MASTER_ADDR"]
    if ":" in host and not host.startswith("["):  # IPv6, which a URL has in brackets
        host = f"[{host}]"
    return f"tcp://{host}:{port}"


def compare_devices(store: "Store", rank: int, world: int, device: str) -> None:
    """Return if all ranks compute on one kind of device, such as cuda. Collective, through the store alone.

    To be called before the process group is made: a rank on a GPU reduces by NCCL, a rank on a CPU by gloo,
    and they would wait for each other until a time-out. Rank 0 compares all; the others read the result.

    Raises:
        ValueError: on every rank, one line with the first rank that differs from rank 0, and both kinds.
        RuntimeError: some ranks did not come before the store's time-out; rank 0 names the first.
    """
    store.set(f"device/{rank}", device)
    if rank == 0:
        try:
            kinds = [kind.decode() for kind in store.multi_get([f"device/{other}" for other in range(world)])]
        except RuntimeError as error:  # torch's, which names keys of the store
            absent = [other for other in range(world) if not store.check([f"device/{other}"])]
            if not absent:
                raise
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise RuntimeError(
                f"rank {absent[0]} of {world}{more} did not come in time: was it started, with the same "
                "MASTER_ADDR, MASTER_PORT and number of ranks?"
            ) from error
        unlike = [
            f"rank {other} computes on {kind}, rank 0 on {kinds[0]}"
            for other, kind in enumerate(kinds)
            if kind != kinds[0]
        ]
        store.set("devices", unlike[0] if unlike else "alike")
    if (found := store.get("devices").decode()) != "alike":
        raise ValueError(
            f"{found}: see nvidia-smi and CUDA_VISIBLE_DEVICES on the machine without a GPU, or set "
            "GERMINAL_DEVICE to the same on every rank"
        )


def _slurm_address(environ: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT of a SLURM step; empty outside one, as in a batch script without srun."""
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
