"""Where the time of a step goes, by class of kernel, from torch's profiler."""

import re
from collections import defaultdict

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from data.stream.batch import Batch
from parallel.engine import Engine


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
    """Return the share of one step's time by kernel class, from the first kernel to the end of the last.

    Kernels that run beside each other share their time, so the classes and the idle rest add up to one. The
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
    """Return kind → time of the spans (start, end, kind); overlapping spans share their time evenly."""
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
