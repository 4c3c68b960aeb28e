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
import json
import re
import statistics
import sys
import time
import traceback
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from data.config import DataConfig, Source
from data.stream.batch import Batch
from parallel.config import ParallelConfig
from parallel.engine import Engine
from parallel.world import runtime as runtimes
from parallel.world.runtime import Runtime
from trainer.config import run_config as configs
from trainer.config.run_config import RunConfig
from trainer.config.sections import OptimConfig, TrainConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.start.engine import make_engine

PEAK_ON_PAPER, PEAK_REAL = 989e12, 794.5e12
GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """A model and how it is fitted onto one device."""

    name: str
    model: DecoderConfig
    seq_len: int
    most_tokens: int  # of a micro-batch: where the search for one that fits begins
    zero: int = 1
    recompute: str = "none"
    state_dtype: str = "fp32"


def decoder(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, **more: Any) -> Any:
    return DecoderConfig(
        layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn_hidden=ffn, vocab=vocab, **more
    )


SIZES = [
    Size("125M", decoder(12, 768, 12, 12, 2048, 50304, tie_embeddings=True), 1024, 1 << 17),
    Size("350M", decoder(24, 1024, 16, 16, 2816, 50304, tie_embeddings=True), 2048, 1 << 16),
    Size("1B", decoder(16, 2048, 32, 8, 8192, 128256, tie_embeddings=True, rope_theta=5e5), 4096, 1 << 16),
    # Moments in bf16 and weights gathered block by block: 12 bytes a parameter, where 1B has 18.
    Size(
        "8B",
        decoder(32, 4096, 32, 8, 14336, 128256, rope_theta=5e5),
        8192,
        1 << 16,
        zero=3,
        recompute="full",
        state_dtype="bf16",
    ),
]
SMOKE = [
    Size("toy", decoder(2, 64, 4, 2, 128, 512), 64, 256),
    Size("toy-deep", decoder(4, 64, 4, 2, 128, 512), 64, 128, zero=3, recompute="full", state_dtype="bf16"),
]


@dataclass
class Result:
    """One line of the table. share: kernel class → its part of the step's time, idle included; empty where
    the profile failed.
    """

    size: str
    precision: str
    skipped: str = ""
    parameters: int = 0
    seq_len: int = 0
    micro_batch: int = 0
    accumulated: int = 0
    recompute: str = ""
    compiled: bool = False
    step_seconds: float = 0.0
    tokens_per_second: float = 0.0
    tflops: float = 0.0
    mfu_paper: float = 0.0
    mfu_real: float = 0.0
    peak_memory_gib: float = 0.0
    loss: float = 0.0  # of the last step, in nats: about log(vocab), as tokens are random
    share: dict[str, float] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)


def config_of(size: Size, fp8: str, micro_batch: int, accumulate: int, *, compiled: bool) -> RunConfig:
    return RunConfig(
        name="gpu",
        model=size.model,
        data=DataConfig(sources=[Source(path="unused")], seq_len=size.seq_len),
        optim=OptimConfig(lr=1e-4, state_dtype=size.state_dtype),  # type: ignore[arg-type]
        train=TrainConfig(
            steps=1_000_000,
            global_batch=micro_batch * accumulate,
            micro_batch=micro_batch,
            precision="bf16",
            fp8=fp8,  # type: ignore[arg-type]
        ),
        parallel=ParallelConfig(zero=size.zero, recompute=size.recompute, compile=compiled),
    )


def state_bytes(size: Size) -> int:
    """Float32 weights and gradients, two moments, and the bf16 weights where they stay gathered."""
    each = 8 + 2 * (2 if size.state_dtype == "bf16" else 4) + (0 if size.zero == 3 else 2)
    return each * size.model.parameters().total


def batches_of(cfg: RunConfig, device: torch.device, seed: int) -> list[Batch]:
    """A step's micro-batches of random tokens, on the device already."""
    draw = torch.Generator().manual_seed(seed)
    rows, seq = cfg.train.micro_batch, cfg.data.seq_len
    found = []
    for number in range(cfg.train.global_batch // rows):
        tokens = torch.randint(cfg.model.vocab, (rows, seq + 1), generator=draw)
        tensors = {"tokens": tokens[:, :-1].contiguous(), "following": tokens[:, 1:].contiguous()}
        found.append(Batch(tensors, tuple(range(number * rows, (number + 1) * rows))).to(device))
    return found


def measure(size: Size, fp8: str, runtime: Runtime, *, steps: int, accumulate: int) -> Result:
    """The largest micro-batch that fits, found by halving, and what it reaches."""
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
    """Everything of the last engine; outside the `except`, whose traceback holds its frames."""
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
        engine = make_engine(cfg, runtime, configs.layout(cfg, 1))
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


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# The first class whose pattern occurs in a kernel's name (on a CPU an operator's) has it. Inductor names a
# fused kernel after whatever went into it, but only its templates multiply. Attention comes before the matrix
# products whose library it is built with.
ELEMENTWISE = "elementwise, norm"
CLASSES = [
    ("attention", r"^triton_tem.*attention"),
    ("matmul", r"^triton_tem"),
    (ELEMENTWISE, r"^triton_"),
    ("communication", r"nccl|c10d|gloo"),
    ("attention", r"flash|fmha|attention|sdpa|cudnn::fusion"),  # cuDNN's backward has kernels of that space
    ("matmul", r"gemm|nvjet|cutlass|cublas|xmma|splitK|::(mm|addmm|bmm|_scaled_mm)$"),
    ("copies", r"CopyFunctor"),  # FSDP's casts, by the optimiser's kernel
    ("optimiser", r"adam|multi_tensor_apply|foreach"),
    ("copies", r"memcpy|memset|copy|CatArray|chunk_cat|split_with_sizes|::cat$"),
]
KINDS = ["matmul", "attention", ELEMENTWISE, "optimiser", "copies", "communication", "idle"]


def kernel_class(name: str) -> str:
    return next((kind for kind, pattern in CLASSES if re.search(pattern, name, re.IGNORECASE)), ELEMENTWISE)


def where_time_goes(engine: Engine, batches: list[Batch], device: torch.device) -> dict[str, float]:
    """Share of one step's time by kernel class. Kernels that run beside each other share their time, so the
    classes and the idle rest add up to one. Time counts from the first kernel to the end of the last. The
    profiler's own work may keep the device waiting: idle is an upper bound.
    """
    activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        engine.step(batches, lr=1e-4)
        synchronize(device)
    events = profiler.events() or []
    if device.type == "cuda":
        kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        totals = split_time([(e.time_range.start, e.time_range.end, kernel_class(e.name)) for e in kernels])
    else:  # operators nest: of each, what is not its children's
        kernels = [e for e in events if e.name.startswith("aten::")]
        totals = defaultdict(float)
        for event in kernels:
            totals[kernel_class(event.name)] += event.self_cpu_time_total
    if not kernels:
        raise RuntimeError("the profile holds no kernel")
    first, last = min(e.time_range.start for e in kernels), max(e.time_range.end for e in kernels)
    whole = max(last - first, sum(totals.values()))
    shares = {kind: round(totals.get(kind, 0.0) / whole, 4) for kind in KINDS[:-1]}
    return {**shares, "idle": round(1 - sum(totals.values()) / whole, 4)}


def split_time(spans: list[tuple[float, float, str]]) -> dict[str, float]:
    """Σ over each moment in which something runs, divided evenly among what runs."""
    edges = sorted((at, sign, kind) for start, end, kind in spans for at, sign, kind in
                   ((start, 1, kind), (end, -1, kind)))  # fmt: skip
    totals: dict[str, float] = defaultdict(float)
    running: dict[str, int] = defaultdict(int)
    before = 0.0
    for at, sign, kind in edges:
        count = sum(running.values())
        for other, number in running.items() if count else ():
            totals[other] += (at - before) * number / count
        running[kind] += sign
        before = at
    return dict(totals)


def markdown(device: str, results: list[Result], about: dict[str, str]) -> str:
    head = ["model", "precision", "micro-batch × seq", "tokens/s", "TFLOP/s", "MFU of 989", "MFU of 794.5",
            "peak GiB"]  # fmt: skip
    done = [result for result in results if not result.skipped]
    rows = [
        [r.size, r.precision, f"{r.micro_batch} × {r.seq_len}", f"{r.tokens_per_second:,.0f}",
         f"{r.tflops:.1f}", f"{r.mfu_paper:.1%}", f"{r.mfu_real:.1%}", f"{r.peak_memory_gib:.1f}"]
        for r in done
    ]  # fmt: skip
    shares = [[r.size, r.precision, *(f"{r.share.get(kind, 0):.1%}" for kind in KINDS)] for r in done]
    lines = [f"# Training speed on {device}", "", (__doc__ or "").strip().split("\n\n")[-1], ""]
    lines += [*table(head, rows), "", "Where a step's time goes:", ""]
    lines += [*table(["model", "precision", *KINDS], shares), ""]
    for result in results:
        if result.skipped:
            lines.append(f"- {result.size} {result.precision} left out: {result.skipped}")
        lines += [f"- {result.size} {result.precision}: {line}" for line in result.tried]
    return "\n".join([*lines, "", ", ".join(f"{key} {value}" for key, value in about.items()), ""])


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def write(out: Path, device: str, results: list[Result], about: dict[str, str], *, smoke: bool) -> str:
    """Both files, and the text of the readable one."""
    out.mkdir(parents=True, exist_ok=True)
    name = re.sub("[^A-Za-z0-9]+", "-", device).strip("-")
    stem = f"gpu-{name}{'-smoke' if smoke else ''}"
    document = {"device": device, **about, "cases": [asdict(result) for result in results]}
    (out / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    text = markdown(device, results, about)
    (out / f"{stem}.md").write_text(text)
    return text


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
            text = write(args.out, device, results, about, smoke=args.smoke)  # what is cut off keeps the rest
    print(f"\n{text}")
    runtime.stop()
    loaded = {"deepspeed", "wandb", "transformers"} & set(sys.modules)
    assert not loaded, f"the torch engine imports {loaded}"
    return int(any(result.skipped.startswith("failed") for result in results))


if __name__ == "__main__":
    sys.exit(main())
