"""All-reduce over the ranks: gradients go that way."""

import time

import torch
import torch.distributed as dist

CPU_BYTES = 16 << 20
GPU_BYTES = 256 << 20
ROUNDS = 5


def all_reduce_bytes_per_second(device: torch.device, *, world: int) -> float:
    """Bus bandwidth of an all-reduce over the world, in bytes per second. Collective.

    Bytes × 2 (world − 1) / world ÷ seconds: what each link carries, so that it can be compared with what the
    link can do, whatever the world (nccl-tests, doc/PERFORMANCE.md). The best of some rounds.
    """
    size = GPU_BYTES if device.type == "cuda" else CPU_BYTES
    data = torch.ones(size // 4, device=device)
    best = float("inf")
    for round_number in range(ROUNDS + 1):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(data)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if round_number:  # the first one connects the ranks
            best = min(best, time.perf_counter() - began)
    slowest = torch.tensor([best], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return size * 2 * (world - 1) / world / float(slowest)
