"""One rank of the doctor's measurements: `python -m trainer.process.entry trainer.doctor.command PART`.

`local`: the ranks of one machine measure matrix products and all-reduce. `nodes`: ranks of several machines
measure the all-reduce alone. Rank 0 prints one JSON document.
"""

import json
import socket
import sys
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist

from common.exit_codes import DONE, FAILED, WRONG
from common.standard_error import complain
from parallel.world import runtime as runtimes
from trainer.doctor import compute, links, peaks
from trainer.metrics.speed import peak_flops
from trainer.process.interrupts import LeaveAtOnce

LOCAL = "local"
NODES = "nodes"


def main(arguments: list[str], at_once: LeaveAtOnce | None = None) -> int:
    """Measure; return the exit code. A signal ends the process at once: there is nothing to save."""
    if arguments not in ([LOCAL], [NODES]):
        return complain("usage: python -m trainer.process.entry trainer.doctor.command local|nodes", WRONG)
    try:
        if at_once:
            at_once.listen()
        runtime = runtimes.start()
    except ValueError as error:
        return complain(error, WRONG)
    except RuntimeError as error:
        return complain(error, FAILED)
    code = FAILED
    with ExitStack() as stack:
        stack.callback(lambda: runtime.stop(failed_with=code))
        try:
            document = measure(runtime, with_matmul=arguments == [LOCAL])
            code = DONE
        except (RuntimeError, OSError) as error:
            return complain(error, FAILED)
        if runtime.is_writer:
            print(json.dumps(document), flush=True)
        runtime.announce_exit(code)
    return code


def measure(runtime: runtimes.Runtime, *, with_matmul: bool) -> dict[str, Any]:
    """Measure on every rank; return all figures. Collective."""
    mine = _matmul(runtime) if with_matmul else {}
    everyone: list[Any] = [mine]
    rate = 0.0
    if runtime.world > 1:
        everyone = [None] * runtime.world
        dist.all_gather_object(everyone, mine)
        rate = links.all_reduce_bytes_per_second(runtime.device, world=runtime.world)
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else ""
    return {
        "device": name or "CPU",
        "backend": "NCCL" if name else "gloo",
        "ranks": everyone,
        "all_reduce_bytes_per_second": rate,
        "nvlink_bytes_per_second": peaks.nvlink_bytes_per_second(name),
    }


def _matmul(runtime: runtimes.Runtime) -> dict[str, Any]:
    rate = compute.matmul(runtime.device)
    if runtime.device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(runtime.device))
    else:
        peak = peaks.cpu_flops_per_second(torch.get_num_threads())
    return {
        "host": socket.gethostname(),
        "flops_per_second": rate.flops_per_second,
        "share": rate.share,
        "peak": peak,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], LeaveAtOnce("the end").begin()))
