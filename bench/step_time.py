"""Step time against what others run: same model, weights, batches, optimiser and clipping, in turns.

`python bench/step_time.py`: on a CPU with gloo and one thread a rank. Each comparison in processes of
its own that hold all its contenders, which take turns of a few steps, in another order every round:

* ZeRO-1, 2, 3 against a bare loop over torch's `fully_shard` that reduces as we do: one reduction of sums at
  the last micro-batch (ZeRO-1) or at each (ZeRO-2, 3), parameters resharded after forward or not.
* Data parallelism, two ranks and one: our engine, Accelerate, Hugging Face's Trainer, a loop after nanoGPT.
* DeepSpeed: our engine that drives it and a plain DeepSpeed loop, beside our torch engine.

A contender is what a user who knows the library writes. All are checked to compute the same: each one's loss
over the first steps is the first one's to 1e-5. A round gives one ratio of neighbours in time; their median
and quartiles are printed and go to bench/results/step_time.json.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: ranks share few cores
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contenders.libraries import DeepSpeed, HuggingFace, WithAccelerate
from contenders.loops import FullyShard, Germinal, NanoGPT
from contenders.task import MICRO_BATCHES, MODEL, ROWS, SEQ, Contender, Place

from launch.local.rank_commands import KEEP_MEMORY

RESULTS = Path(__file__).parent / "results" / "step_time.json"
CHECKED_STEPS, WARM_UP_ROUNDS, TOLERANCE = 4, 2, 1e-5

Make = Callable[[Place], Contender]


@dataclass(frozen=True)
class Comparison:
    """What takes turns in the processes of one comparison.

    ranks: number of processes.
    contenders: name → how to make one on a rank.
    pairs: (a, b): the ratio a / b is reported.
    """

    ranks: int
    contenders: dict[str, Make]
    pairs: list[tuple[str, str]]


def sharded() -> Comparison:
    names = {zero: (f"ours, ZeRO-{zero}", f"fully_shard as ZeRO-{zero}") for zero in (1, 2, 3)}
    made: dict[str, Make] = {}
    for zero, (ours, bare) in names.items():
        made[ours] = functools.partial(Germinal, zero=zero)
        made[bare] = functools.partial(FullyShard, zero=zero)
    return Comparison(2, made, list(names.values()))


def libraries(ranks: int, **theirs: Make) -> Comparison:
    """Our engine beside libraries whose loops reduce whole gradients, as ours does under ZeRO-0.

    ZeRO-1 is compared too, since it is the default of our configs.
    """
    stages = (0, 1) if ranks > 1 else (1,)
    ours: dict[str, Make] = {f"ours, ZeRO-{zero}": functools.partial(Germinal, zero=zero) for zero in stages}
    return Comparison(ranks, ours | theirs, [(mine, name) for mine in ours for name in theirs])


def deepspeed() -> Comparison:
    made: dict[str, Make] = {}
    pairs = []
    for zero in (1, 2, 3):
        ours, driven, plain = (
            f"ours, ZeRO-{zero}",
            f"our DeepSpeed engine, ZeRO-{zero}",
            f"DeepSpeed, ZeRO-{zero}",
        )
        made[ours] = functools.partial(Germinal, zero=zero)
        made[driven] = functools.partial(Germinal, engine="deepspeed", zero=zero)
        made[plain] = functools.partial(DeepSpeed, zero=zero)
        pairs += [(driven, plain), (ours, driven), (ours, plain)]
    return Comparison(2, made, pairs)


LOOPS: dict[str, Make] = {"Accelerate": WithAccelerate, "nanoGPT's loop": NanoGPT}
# Not beside Accelerate: it keeps the accumulation of all loops in a process in one place.
TRAINER: dict[str, Make] = {"Hugging Face Trainer": HuggingFace}
COMPARISONS: dict[str, Callable[[], Comparison]] = {
    "ZeRO": sharded,
    "loops, 2 ranks": functools.partial(libraries, 2, **LOOPS),
    "loops, 1 rank": functools.partial(libraries, 1, **LOOPS),
    "Trainer, 2 ranks": functools.partial(libraries, 2, **TRAINER),
    "Trainer, 1 rank": functools.partial(libraries, 1, **TRAINER),
    "DeepSpeed": deepspeed,
}


def check(contenders: dict[str, Contender], ranks: int) -> None:
    """Assert that all contenders compute the same losses."""
    names = list(contenders)
    losses = torch.tensor([[one.step(n) for n in range(CHECKED_STEPS)] for one in contenders.values()])
    if ranks > 1:  # most loops know the loss of their own rank
        dist.all_reduce(losses)
        losses /= ranks
    off = ((losses - losses[0]).abs() / losses[0]).amax(dim=1)
    for name, value in zip(names, off.tolist(), strict=True):
        assert value < TOLERANCE, f"{name} is off by {value:.1e}: {losses[names.index(name)]} {losses[0]}"


def work(rank: int, title: str, store: str, rounds: int, steps: int, out: str) -> None:
    comparison = COMPARISONS[title]()
    ranks = comparison.ranks
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), ACCELERATE_USE_CPU="true")
    os.environ.update(
        LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="0"
    )  # not connected to
    if ranks > 1 or title == "DeepSpeed":
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(minutes=3)
        )
    contenders = {name: make(Place(rank, ranks)) for name, make in comparison.contenders.items()}
    check(contenders, ranks)
    counts = dict.fromkeys(contenders, CHECKED_STEPS)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for number in range(WARM_UP_ROUNDS + rounds):
        order.reverse()  # neighbours stay neighbours, and whoever was first is last
        for name in order:
            _barrier()
            begin = time.perf_counter()
            for _ in range(steps):
                contenders[name].step(counts[name])
                counts[name] += 1
            _barrier()
            if number >= WARM_UP_ROUNDS:
                seconds[name].append((time.perf_counter() - begin) / steps)
    if rank == 0:
        Path(out).write_text(json.dumps(seconds))
    os._exit(0)  # Trainer's thread still waits for its next step


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def machine() -> str:
    """The CPU as Linux names it, and its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 4) for value in statistics.quantiles(values, n=4)]


def compare(title: str, rounds: int, steps: int) -> dict[str, Any]:
    comparison = COMPARISONS[title]()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        args = (title, f"{folder}/store", rounds, steps, str(out))
        mp.start_processes(work, args, nprocs=comparison.ranks, start_method="spawn")
        seconds = json.loads(out.read_text())
    print(f"\n{title}: {comparison.ranks} ranks, {rounds} rounds of {steps} steps")
    for name, values in seconds.items():
        print(f"  {statistics.median(values) * 1e3:8.1f} ms  {name}")
    ratios = {}
    for mine, other in comparison.pairs:
        low, middle, high = quartiles([a / b for a, b in zip(seconds[mine], seconds[other], strict=True)])
        print(f"  {middle:8.3f}  ({low:.3f} to {high:.3f})  {mine} / {other}")
        ratios[f"{mine} / {other}"] = [middle, low, high]
    return {
        "ranks": comparison.ranks,
        "rounds": rounds,
        "step_ms": {name: round(statistics.median(values) * 1e3, 1) for name, values in seconds.items()},
        "ratios": ratios,
    }


def main() -> None:
    os.environ.update(KEEP_MEMORY)  # of all contenders alike: their processes start with it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=2, help="steps of a contender at a time")
    parser.add_argument("--only", choices=list(COMPARISONS), action="append", help="one comparison, not all")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text())["comparisons"] if RESULTS.exists() else {}
    for title in args.only or COMPARISONS:
        results.setdefault(title, {})[machine()] = compare(title, args.rounds, args.steps)
    about = {
        "ran": "on a CPU, 1 thread a rank, gloo; under each comparison, what each machine gave",
        "torch": torch.__version__,
        "model": f"{MODEL.layers} layers of {MODEL.hidden}, vocabulary {MODEL.vocab}, sequences of {SEQ}",
        "step": f"{MICRO_BATCHES} micro-batches of {ROWS} a rank, fp32, fused AdamW, clipped",
        "ratios": "median, lower and upper quartile of one ratio a round of `steps` steps each",
        "steps": args.steps,
    }
    RESULTS.write_text(json.dumps({**about, "comparisons": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
