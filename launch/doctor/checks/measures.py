"""What the devices and the links between the ranks of one machine do, against what they should do.

Ranks measure (`trainer.doctor`), which import torch; this file starts them and judges their figures.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from common.programs import output_of
from launch.doctor.check import Circumstances
from launch.doctor.checks.software import torch_cuda
from launch.doctor.finding import Finding, note, ok, warning
from launch.job import DOCTOR, Job
from launch.local.run import run_as_children
from trainer.process import cores

CPU_RANKS = 2
GPU_SHARE = 0.6  # of the data sheet's FLOP/s: a large product reaches 70 to 80 % (not measured here)
CPU_SHARE = (
    0.15  # of the estimate, which may itself be twice too high; a library without AVX reaches 6 to 12 %
)
HELD_UP_SHARE = 0.8  # of its time in which a rank had its cores
NVLINK_SHARE = 0.5
PCIE_BYTES_PER_SECOND = 4e9  # of an all-reduce between GPUs without NVLink, through the host's memory
CPU_BYTES_PER_SECOND = 0.1e9


def check(at: Circumstances) -> Iterator[Finding]:
    """Matrix products on every device, and the all-reduce over local ranks."""
    ranks = local_ranks(at.environ)
    threads = max(1, cores.usable().count // ranks)
    code, printed, errors = run_quietly(Job("local", nproc=ranks, module=DOCTOR, threads=threads))
    if code:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        text = f"{ranks} ranks of torch on this machine failed: {last.removeprefix('error: ')}"
        yield warning(
            "speed.ranks", text, "`germinal train` would fail likewise: mend what the message names"
        )
        return
    document = json.loads(printed.strip().splitlines()[-1])
    yield from matmul(document)
    yield from all_reduce(document)


def local_ranks(environ: Mapping[str, str]) -> int:
    """One rank a GPU that this process may use; without a GPU two, if there are two cores."""
    gpus = 0
    if torch_cuda() and environ.get("GERMINAL_DEVICE", "cuda") != "cpu":
        try:
            gpus = (output_of(["nvidia-smi", "-L"]) or "").count("GPU ")
        except (RuntimeError, TimeoutError):
            gpus = 0
        if (told := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
            gpus = min(gpus, len([name for name in told.split(",") if name.strip()]))
    return gpus or min(CPU_RANKS, cores.usable().count)


def run_quietly(job: Job) -> tuple[int, str, str]:
    """Run a job's ranks; return the exit code, what rank 0 printed, and what came on standard error."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        before = [os.dup(1), os.dup(2)]
        try:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = run_as_children(job)
        finally:
            for number, descriptor in zip((1, 2), before):
                os.dup2(descriptor, number)
                os.close(descriptor)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return code, texts[0], texts[1]


def matmul(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Judge each rank's matrix products."""
    ranks, device = document["ranks"], document["device"]
    on_gpu = device != "CPU"
    total = sum(rank["flops_per_second"] for rank in ranks)
    each = min(rank["flops_per_second"] for rank in ranks)
    peak, share = ranks[0]["peak"], min(rank["share"] for rank in ranks)
    measured = {"matmul_flops_per_second": each if on_gpu else total}
    unit, divisor = ("TFLOP/s in bf16", 1e12) if on_gpu else ("GFLOP/s in fp32", 1e9)
    figure = (
        f"{len(ranks)} × {device}: " if on_gpu else f"CPU, {sum(rank['threads'] for rank in ranks)} threads: "
    )
    text = f"{figure}matrix products at {measured['matmul_flops_per_second'] / divisor:,.3g} {unit}"
    if peak:
        of_peak = min(rank["flops_per_second"] / (rank["share"] or 1) / rank["peak"] for rank in ranks)
        source = "the data sheet" if on_gpu else "an estimate from vector width and clock"
        text += f", {of_peak:.0%} of {source}"
    else:
        of_peak = 1.0
        text += f"; what {device} should do is not known here"
    if share < HELD_UP_SHARE:
        text += f"; the ranks had their cores for {share:.0%} of the time"
        remedy = "see `top`: other work takes the cores, or a quota does"
        yield warning("speed.matmul", text, remedy, measured=measured)
    elif of_peak < (GPU_SHARE if on_gpu else CPU_SHARE):
        remedy = "look at clocks, heat and power (`nvidia-smi -q -d PERFORMANCE`)" if on_gpu else (
            "look at clocks and heat; a virtual machine may have half of a core; is this torch built for it?"
        )  # fmt: skip
        yield warning("speed.matmul", text, remedy, measured=measured)
    else:
        yield ok("speed.matmul", text, measured=measured)
    if on_gpu:
        yield from _uneven(ranks)


def _uneven(ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    rates = [rank["flops_per_second"] for rank in ranks]
    best = max(rates)
    for number, rate in enumerate(rates):
        if rate < 0.9 * best:
            text = f"GPU {number} multiplies at {rate / best:.0%} of the fastest beside it"
            yield warning("speed.uneven", text, "see its clocks and heat: the slowest sets the pace of all")


def all_reduce(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Judge the bus bandwidth of the all-reduce."""
    rate, count = document["all_reduce_bytes_per_second"], len(document["ranks"])
    if count < 2:
        return
    text = (
        f"all-reduce over {count} local ranks by {document['backend']}: {rate / 1e9:.3g} GB/s bus bandwidth"
    )
    measured = {"all_reduce_bytes_per_second": rate}
    nvlink = document["nvlink_bytes_per_second"]
    if document["device"] == "CPU":
        least, remedy = CPU_BYTES_PER_SECOND, "see `top`: other work takes the cores"
    elif rate > 2 * PCIE_BYTES_PER_SECOND and nvlink:
        text += f", {rate / nvlink:.0%} of NVLink's"
        least, remedy = (
            NVLINK_SHARE * nvlink,
            "see `nvidia-smi topo -m`: GPUs without NVLink between them are slower",
        )
        if rate < least:
            yield note("speed.all_reduce", text, remedy, measured=measured)
            return
    else:
        least, remedy = (
            PCIE_BYTES_PER_SECOND,
            "see NCCL_DEBUG=INFO: is P2P off, by a setting or by ACS in the firmware?",
        )
    if rate < least:
        yield warning("speed.all_reduce", text, remedy, measured=measured)
    else:
        yield ok("speed.all_reduce", text, measured=measured)
