"""Chunked linear + cross-entropy against the plain one: peak memory and time of a forward and backward.

    python bench/cross_entropy.py [--threads 2] [--rounds 5] [--device cuda]

Of every size in SIZES. Peak memory is what a fresh process, or the CUDA allocator, holds above its state
before the call, gradients included: few rows of a wide model leave mostly the weight's own. Time is the
median of interleaved rounds. Goals: at most 1/8 of the memory, 1.05 of the time. Writes
bench/results/cross_entropy-<device>.json.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.models.layers.cross_entropy import chunked_nll_sum

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Size:
    rows: int
    hidden: int
    vocab: int = 32768
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 2

    def __str__(self) -> str:
        return f"{self.rows} rows × hidden {self.hidden} × vocabulary {self.vocab}, {self.dtype}"


SIZES = (
    Size(2048, 512),
    Size(2048, 1024),
    Size(4096, 512),
    Size(8192, 512, dtype="bfloat16"),
    Size(8192, 1024),
    Size(4096, 768, 50304),
)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


LOSSES: dict[str, Loss] = {"plain": plain, "chunked": chunked_nll_sum}


def arguments(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    torch.set_num_threads(size.threads)
    torch.manual_seed(0)
    # Drawn in place: a temporary would raise the peak that memory is measured above.
    where = {"dtype": getattr(torch, size.dtype), "device": size.device}
    hidden = torch.empty(size.rows, size.hidden, **where).normal_().requires_grad_()
    weight = torch.empty(size.vocab, size.hidden, **where).normal_(std=0.02).requires_grad_()
    return hidden, weight, torch.randint(size.vocab, (size.rows,), device=size.device)


def seconds(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    hidden.grad = weight.grad = None
    start = time.perf_counter()
    loss(hidden, weight, targets).sum().backward()
    if hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(name: str, size: Size) -> int:
    if size.device == "cuda":
        tensors = arguments(size)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        seconds(LOSSES[name], *tensors)
        return torch.cuda.max_memory_allocated() - before
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_resident_bytes, (name, size))


def _peak_resident_bytes(name: str, size: Size) -> int:
    tensors = arguments(size)
    # Threads, kernels and allocator pools come with the first call, not with the size of the problem.
    hidden, weight, targets = tensors
    seconds(
        LOSSES[name],
        hidden[:64].detach().requires_grad_(),
        weight[:64].detach().requires_grad_(),
        targets[:64] % 64,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds(LOSSES[name], *tensors)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def measure(size: Size, peak: dict[str, int], rounds: int) -> dict[str, float]:
    tensors = arguments(size)
    times: dict[str, list[float]] = {name: [] for name in LOSSES}
    for round_ in range(rounds + 1):
        for name, loss in LOSSES.items():
            elapsed = seconds(loss, *tensors)
            if round_:  # the first one warms up
                times[name].append(elapsed)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{size} (float32 logits: {size.rows * size.vocab * 4 / 1e6:.0f} MB)")
    for name in LOSSES:
        print(f"  {name:10}{median[name] * 1e3:10.1f} ms{peak[name] / 1e6:10.1f} MB")
    ratios = {
        "time": round(median["chunked"] / median["plain"], 3),
        "peak": round(peak["chunked"] / peak["plain"], 4),
    }
    print(f"  time {ratios['time']}× (goal 1.05), peak 1/{1 / ratios['peak']:.1f} (goal 1/8)", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description="chunked against plain cross-entropy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    where = {"threads": options.threads, "device": options.device}
    sizes = [replace(size, **where) for size in SIZES]
    # Before anything else: a process starts with the peak of the process that spawned it.
    peaks = [{name: peak_bytes(name, size) for name in LOSSES} for size in sizes]
    found = {str(size): measure(size, peak, options.rounds) for size, peak in zip(sizes, peaks)}
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {os.cpu_count()} cores"
    about = {"machine": f"{machine}, {options.threads} threads, torch {torch.__version__}"}
    path = RESULTS / f"cross_entropy-{options.device}.json"
    path.write_text(json.dumps({**about, "ratios": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
