"""Chunked linear + cross-entropy against the plain one: peak memory and time of a forward and backward.

    python bench/cross_entropy.py [--rows 4096] [--hidden 512] [--vocab 32768] [--threads 2] [--rounds 5]

Peak memory is what a fresh process, or the CUDA allocator, holds above its state before the call, gradients
included. Time is the median of interleaved rounds. Goals: at most 1/8 of the memory, 1.05 of the time.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.models.head import chunked_nll_sum

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


LOSSES: dict[str, Loss] = {"plain": plain, "chunked": chunked_nll_sum}


def arguments(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # Drawn in place: a temporary would raise the peak that memory is measured above.
    where = {"dtype": getattr(torch, options.dtype), "device": options.device}
    hidden = torch.empty(options.rows, options.hidden, **where).normal_().requires_grad_()
    weight = torch.empty(options.vocab, options.hidden, **where).normal_(std=0.02).requires_grad_()
    return hidden, weight, torch.randint(options.vocab, (options.rows,), device=options.device)


def seconds(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    hidden.grad = weight.grad = None
    start = time.perf_counter()
    loss(hidden, weight, targets).sum().backward()
    if hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(name: str, options: argparse.Namespace) -> int:
    if options.device == "cuda":
        tensors = arguments(options)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        seconds(LOSSES[name], *tensors)
        return torch.cuda.max_memory_allocated() - before
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_resident_bytes, (name, options))


def _peak_resident_bytes(name: str, options: argparse.Namespace) -> int:
    tensors = arguments(options)
    # Threads, kernels and allocator pools come with the first call, not with the size of the problem.
    seconds(
        LOSSES[name],
        *(t[:64].detach().requires_grad_(t.is_floating_point()) for t in tensors[:2]),
        tensors[2][:64] % 64,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds(LOSSES[name], *tensors)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="chunked against plain cross-entropy")
    for name, value in (("rows", 4096), ("hidden", 512), ("vocab", 32768), ("threads", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()

    # First: a process starts with the peak of the one that spawned it.
    peak = {name: peak_bytes(name, options) for name in LOSSES}
    tensors = arguments(options)
    times: dict[str, list[float]] = {name: [] for name in LOSSES}
    for round_ in range(options.rounds + 1):
        for name, loss in LOSSES.items():
            elapsed = seconds(loss, *tensors)
            if round_:  # the first one warms up
                times[name].append(elapsed)
    median = {name: statistics.median(values) for name, values in times.items()}
    logits_bytes = options.rows * options.vocab * 4

    print(f"{options.rows} rows × hidden {options.hidden} × vocabulary {options.vocab}, {options.dtype}")
    print(f"{'':10}{'time, ms':>10}{'peak, MB':>10}      (float32 logits: {logits_bytes / 1e6:.0f} MB)")
    for name in LOSSES:
        print(f"{name:10}{median[name] * 1e3:10.1f}{peak[name] / 1e6:10.1f}")
    print(f"time ratio {median['chunked'] / median['plain']:.3f} (goal 1.05)")
    print(f"peak ratio 1/{peak['plain'] / peak['chunked']:.1f} (goal 1/8)")


if __name__ == "__main__":
    main()
