"""Training speed on one CUDA device: tokens a second, MFU, peak memory, and where the time goes.

`python bench/gpu.py` trains 125M, 350M, 1B and 8B on random tokens in bf16 and fp8 through the engine that
runs use, each with the largest micro-batch that fits, and writes bench/results/gpu-<device>.md and .json. It
needs torch and the core dependencies, torchao for fp8, and no network. A case that does not fit, or cannot
be had, is a line with its reason. `--smoke` does the same with toys, on a CPU as well.

FLOPs are the model's, by PaLM's convention (trainer/models/decoder/config.py): 6 a parameter of every matrix
that is multiplied and a token, 12 · layers · hidden · seq for attention with all of seq², and recomputation
not counted. MFU is given against the H100's dense bf16 peak on paper, 989 TFLOP/s, and against 794.5, the
best that a real matrix product reaches there; fp8 is held against the same bf16 figures.
"""

import argparse
import gc
import re
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch
from on_gpu.cases import SIZES, SMOKE, Size, config_of, state_bytes
from on_gpu.kernels import synchronize, where_time_goes
from on_gpu.tables import Result, write

from data.stream.batch import Batch
from parallel.world import runtime as runtimes
from parallel.world.runtime import Runtime
from trainer.config import checks
from trainer.config.run_config import RunConfig
from trainer.objectives.context import ObjectiveContext
from trainer.start.engine import make_engine

PEAK_ON_PAPER, PEAK_REAL = 989e12, 794.5e12
GIB = 1 << 30


def batches_of(cfg: RunConfig, device: torch.device, seed: int) -> list[Batch]:
    """Draw a step's micro-batches of random tokens, on the device."""
    draw = torch.Generator().manual_seed(seed)
    rows, seq = cfg.train.micro_batch, cfg.data.seq_len
    found = []
    for number in range(cfg.train.global_batch // rows):
        tokens = torch.randint(cfg.model.vocab, (rows, seq + 1), generator=draw)
        tensors = {"tokens": tokens[:, :-1].contiguous(), "following": tokens[:, 1:].contiguous()}
        found.append(Batch(tensors, tuple(range(number * rows, (number + 1) * rows))).to(device))
    return found


def measure(size: Size, fp8: str, runtime: Runtime, *, steps: int, accumulate: int) -> Result:
    """Measure a case with the largest micro-batch that fits, which is found by halving."""
    on_gpu = runtime.device.type == "cuda"
    result = Result(size.name, fp8 if fp8 != "none" else "bf16", parameters=size.model.parameters().total)
    result.seq_len, result.recompute, result.compiled = size.seq_len, size.recompute, on_gpu
    result.accumulated = accumulate
    if on_gpu and (need := state_bytes(size)) > (free := torch.cuda.mem_get_info(runtime.device)[0]):
        result.skipped = f"needs {need / GIB:.0f} GiB for model state, {free / GIB:.0f} are free"
        return result
    micro_batch = max(1, size.most_tokens // size.seq_len)
    while micro_batch:
        cfg = config_of(size, fp8, micro_batch, accumulate, compiled=on_gpu)
        try:
            fill(result, cfg, runtime, steps)
            return result
        except Refused as refusal:
            result.skipped = str(refusal)
            return result
        except Exception as error:
            line = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            if not re.search("out of memory|ALLOC_FAILED", str(error)):
                traceback.print_exc()  # the other cases are worth having all the same
                result.skipped = f"failed: {line}"
                return result
            result.tried.append(f"micro-batch {micro_batch}: {line}")
        release(runtime.device)
        print(f"  {size.name} {result.precision}: micro-batch {micro_batch} does not fit", flush=True)
        micro_batch //= 2
    result.skipped = "out of memory with one sequence"
    return result


def release(device: torch.device) -> None:
    """Free the memory of the last engine; outside the `except`, whose traceback holds the engine's frames."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


class Refused(Exception):
    """The configuration cannot be had here: fp8 without its device."""


def fill(result: Result, cfg: RunConfig, runtime: Runtime, steps: int) -> None:
    release(runtime.device)
    try:
        context = ObjectiveContext(cfg.seed, cfg.data.seq_len, cfg.model.vocab, 0, bytes)
        engine = make_engine(cfg, runtime, checks.layout(cfg, 1), context)
    except ValueError as error:
        raise Refused(str(error)) from error
    try:
        batches = [batches_of(cfg, runtime.device, seed) for seed in range(2)]
        for number in range(3):  # compilation, allocator, clocks
            engine.step(batches[number % 2], lr=1e-4)
        seconds = []
        for number in range(steps):
            begin = time.perf_counter()
            done = engine.step(batches[number % 2], lr=1e-4)  # ends with the step's one read of the device
            synchronize(runtime.device)
            seconds.append(time.perf_counter() - begin)
            if done.skipped:
                raise RuntimeError(f"step {number} made no update: its gradient norm is {done.grad_norm}")
        if runtime.device.type == "cuda":
            result.peak_memory_gib = torch.cuda.max_memory_allocated(runtime.device) / GIB
        result.loss = done.loss_sum / done.count
        result.micro_batch = cfg.train.micro_batch
        result.step_seconds = statistics.median(seconds)
        result.tokens_per_second = cfg.train.global_batch * cfg.data.seq_len / result.step_seconds
        flops_per_token = cfg.model.training_flops(cfg.data.seq_len).total / cfg.data.seq_len
        flops = result.tokens_per_second * flops_per_token
        result.tflops = flops / 1e12
        result.mfu_paper, result.mfu_real = flops / PEAK_ON_PAPER, flops / PEAK_REAL
        try:
            result.share = where_time_goes(engine, batches[0], runtime.device)
        except Exception:  # what is measured stands without it
            traceback.print_exc()
    finally:
        engine.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="toys, on a CPU too: does it all run?")
    parser.add_argument("--only", default="", help="sizes, separated by commas: 125M,1B")
    parser.add_argument("--fp8", default="tensorwise,rowwise", help="fp8 recipes to measure beside bf16")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each case")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches a step")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    runtime = runtimes.start()
    if runtime.world != 1:
        parser.error("measures one device: start it without a launcher")
    if runtime.device.type != "cuda" and not args.smoke:
        parser.error("no CUDA device here; --smoke runs toys on a CPU")
    device = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "CPU"
    steps = 2 if args.smoke else args.steps
    wanted = [s for s in args.only.split(",") if s]
    about = {
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "micro-batches a step": str(args.accumulate),
    }
    note = (__doc__ or "").strip().split("\n\n")[-1]
    results: list[Result] = []
    text = ""
    for size in SMOKE if args.smoke else SIZES:
        if wanted and size.name not in wanted:
            continue
        for fp8 in ["none", *filter(None, args.fp8.split(","))]:
            results.append(measure(size, fp8, runtime, steps=steps, accumulate=args.accumulate))
            release(runtime.device)
            last = results[-1]
            reached = f"{last.tokens_per_second:,.0f} tokens/s, MFU {last.mfu_paper:.1%}"
            print(f"{last.size} {last.precision}: {last.skipped or reached}", flush=True)
            text = write(
                args.out, device, results, about, note=note, smoke=args.smoke
            )  # what is cut off keeps the rest
    print(f"\n{text}")
    runtime.stop()
    loaded = {"deepspeed", "wandb", "transformers"} & set(sys.modules)
    assert not loaded, f"the torch engine imports {loaded}"
    return int(any(result.skipped.startswith("failed") for result in results))


if __name__ == "__main__":
    sys.exit(main())
