"""Speed of saving a checkpoint against other ways to save the same bytes, in one run, interleaved.

python bench/checkpoint.py [--mib N] [--ranks N] [--rounds N] [--folder DIR]

The state is a decoder's: fp32 parameters and AdamW's two moments, divided over the ranks. Contenders:

- `raw`: every rank writes its bytes with as many threads and files as we do, write(2) and fsync. The floor.
- `germinal`: `Checkpointer.save`, all of it: header, hashes, manifest, fsyncs, commit by rename.
- `torch.save`: one file a rank, then fsync, for the same promise after a power cut.
- `dcp`: `torch.distributed.checkpoint.save` with its defaults, which fsyncs too.

Then the stall of an asynchronous save against copying the same tensors to buffers that exist already. Dirty
pages are written out before each measurement. A ratio is of two contenders in one round; printed are the
median and the quartiles.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor

from common.files import write_all
from parallel.engine import Chunk
from trainer.checkpoint.manager import Checkpointer
from trainer.checkpoint.store import WRITERS
from trainer.ranks import Ranks
from trainer.record.events import EventLog
from trainer.state import Identity, TrainState

HIDDEN = 1024
SLICE_BYTES = 8 << 20


class State:
    """The part of an engine that a checkpoint uses: a rank's parameters and both moments, by layer."""

    def __init__(self, rank: int, mib: int) -> None:
        shapes = [(HIDDEN, HIDDEN)] * 4 + [(HIDDEN, 3 * HIDDEN)] * 3 + [(HIDDEN,)] * 2
        layer_mib = 3 * 4 * sum(torch.Size(shape).numel() for shape in shapes) / 2**20
        self.tensors: dict[str, Tensor] = {}
        for layer in range(max(1, round(mib / layer_mib))):
            for number, shape in enumerate(shapes):
                for kind in ("model", "optim.exp_avg", "optim.exp_avg_sq"):
                    self.tensors[f"{kind}.layers.{rank}-{layer}.{number}"] = torch.randn(shape)
        self.nbytes = sum(tensor.nbytes for tensor in self.tensors.values())

    def chunks(self) -> list[Chunk]:
        return [Chunk(name, t, tuple(t.shape), (0,) * t.dim(), True) for name, t in self.tensors.items()]

    def scalars(self) -> dict[str, Any]:
        return {"updates": 0}


def raw(folder: Path, rank: int, state: State) -> None:
    tensors = list(state.tensors.values())

    def write(number: int) -> None:
        fd = os.open(folder / f"{rank}-{number}", os.O_WRONLY | os.O_CREAT, 0o644)
        for tensor in tensors[number::WRITERS]:
            data = tensor.view(-1).view(torch.uint8).numpy().data
            for start in range(0, data.nbytes, SLICE_BYTES):
                write_all(fd, data[start : start + SLICE_BYTES])
        os.fsync(fd)
        os.close(fd)

    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))


def torch_save(folder: Path, rank: int, state: State) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"{rank}.pt").open("wb") as file:
        torch.save(state.tensors, file)
        file.flush()
        os.fsync(file.fileno())


def dcp_save(folder: Path, rank: int, state: State) -> None:
    dcp.save(state.tensors, checkpoint_id=folder)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def gather(value: Any) -> list[Any]:
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def seconds(action: Callable[[], None], rank: int) -> float:
    """Time an action from all ranks' start to the last one's end, once older dirty pages are on disk."""
    if rank == 0:
        os.sync()
    barrier()
    begin = time.perf_counter()
    action()
    barrier()
    return time.perf_counter() - begin


def work(rank: int, args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.ranks))
    if args.ranks > 1:
        init = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=init, rank=rank, world_size=args.ranks)
    state = State(rank, args.mib // args.ranks)
    times = save_times(state, folder, args.rounds, rank, args.ranks)
    stalls = stall_times(state, folder, args.rounds, rank, args.ranks)
    if rank == 0:
        report(times, stalls, state.nbytes * args.ranks, args)
    if dist.is_initialized():
        dist.destroy_process_group()


def checkpointer(folder: Path, rank: int, ranks: int, *, asynchronous: bool) -> Checkpointer:
    return Checkpointer(
        folder,
        every=1,
        keep=0,
        asynchronous=asynchronous,
        identity=lambda position: Identity(),
        events=EventLog(None),
        ranks=Ranks(rank, ranks, gather),
    )


def save_times(state: State, folder: Path, rounds: int, rank: int, ranks: int) -> dict[str, list[float]]:
    """Return contender → seconds of a save, one a round."""
    ours = checkpointer(folder / "germinal", rank, ranks, asynchronous=False)
    times: dict[str, list[float]] = {"raw": [], "germinal": [], "torch.save": [], "dcp": []}
    for number in range(rounds + 1):
        at = TrainState(number)
        contenders: dict[str, Callable[[], None]] = {
            "raw": lambda: raw(folder / "raw", rank, state),
            "germinal": lambda: ours.save(at, state),  # type: ignore[arg-type]  # noqa: B023
            "torch.save": lambda: torch_save(folder / "torch.save", rank, state),
            "dcp": lambda: dcp_save(folder / "dcp", rank, state),
        }
        for name in random.Random(number).sample(list(contenders), len(contenders)):  # the same on every rank
            taken = seconds(contenders[name], rank)
            if number:  # in the first round the system has yet to allocate memory
                times[name].append(taken)
            if rank == 0:
                step = folder / name / "checkpoints" / f"step-{number:09d}"
                shutil.rmtree(step if name == "germinal" else folder / name)
            barrier()
    return times


def stall_times(state: State, folder: Path, rounds: int, rank: int, ranks: int) -> dict[str, list[float]]:
    """Return the seconds that an asynchronous save stalls the slowest rank, beside those of a copy."""
    background = checkpointer(folder / "async", rank, ranks, asynchronous=True)
    copies = [torch.empty_like(tensor) for tensor in state.tensors.values()]
    stalls: dict[str, list[float]] = {"memcpy": [], "async stall": []}
    for number in range(1, rounds + 2):
        barrier()
        begin = time.perf_counter()
        for copy, tensor in zip(copies, state.tensors.values(), strict=True):
            copy.copy_(tensor)
        memcpy = time.perf_counter() - begin
        barrier()
        background.save(TrainState(number), state)  # type: ignore[arg-type]
        stall = background.stall_seconds
        background.wait()
        slowest = [max(each) for each in zip(*gather((memcpy, stall)), strict=True)]
        if number > 1:  # the first touches the pages of both
            stalls["memcpy"].append(slowest[0])
            stalls["async stall"].append(slowest[1])
        if rank == 0:
            shutil.rmtree(folder / "async" / "checkpoints" / f"step-{number:09d}")
    return stalls


def report(
    times: dict[str, list[float]], stalls: dict[str, list[float]], size: int, args: argparse.Namespace
) -> None:
    median = {name: statistics.median(values) for name, values in (times | stalls).items()}
    print(
        f"{size / 1e9:.2f} GB, {args.ranks} ranks, {args.rounds} rounds, {args.folder or 'temporary folder'}"
    )
    for name in times:
        speeds = sorted(size / value / 1e9 for value in times[name])
        print(f"{name:12} {size / median[name] / 1e9:6.2f} GB/s   ({speeds[0]:.2f} … {speeds[-1]:.2f})")
    for name in stalls:
        print(f"{name:12} {median[name] * 1e3:7.1f} ms")
    values = times | stalls

    def ratio(one: str, other: str) -> str:
        low, middle, high = statistics.quantiles(
            (a / b for a, b in zip(values[one], values[other], strict=True)), n=4
        )
        return f"{middle:5.2f}× ({low:.2f} to {high:.2f})"

    for name, goal in (("raw", 0.9), ("torch.save", 2.0), ("dcp", 2.0)):
        print(f"speed against {name:10}    {ratio(name, 'germinal')}   (goal ≥ {goal}×)")
    print(f"async stall against memcpy  {ratio('async stall', 'memcpy')}   (goal ≤ 1.2×)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the whole state")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="a folder on the file system to measure")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.ranks == 1:
            work(0, args, Path(folder))
        else:
            mp.spawn(work, (args, Path(folder)), args.ranks)


if __name__ == "__main__":
    main()
