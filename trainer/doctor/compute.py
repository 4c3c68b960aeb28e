"""Matrix products per second of one device: what most of a training step is."""

import time
from dataclasses import dataclass

import torch

CPU_SIZE = 1024
GPU_SIZE = 8192
SECONDS = 0.6


@dataclass(frozen=True)
class Rate:
    """How fast a device multiplied matrices.

    flops_per_second: the best of several measurements, by the clock.
    share: of the time, the part in which the process's threads had their cores; 1 on a GPU.
    """

    flops_per_second: float
    share: float


def matmul(device: torch.device) -> Rate:
    """Multiply square matrices, in fp32 on a CPU and in bf16 on a GPU, for about `SECONDS`."""
    on_gpu = device.type == "cuda"
    size, dtype = (GPU_SIZE, torch.bfloat16) if on_gpu else (CPU_SIZE, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    for _ in range(2):
        torch.mm(left, right, out=out)
    best, share, ended = 0.0, 0.0, time.monotonic() + SECONDS
    while time.monotonic() < ended:
        _wait(device)
        began, used = time.perf_counter(), time.process_time()
        for _ in range(10 if on_gpu else 4):
            torch.mm(left, right, out=out)
        _wait(device)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        rate = (10 if on_gpu else 4) * 2 * size**3 / seconds
        if rate > best:
            best, share = rate, 1.0 if on_gpu else min(1.0, used / seconds / torch.get_num_threads())
    return Rate(best, share)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
