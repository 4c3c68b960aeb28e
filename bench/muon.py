"""What sharing Muon's Newton-Schulz among data ranks saves: a step's update, each matrix by one rank against
every matrix by every rank.

`python bench/muon.py --ranks 4`: one model on CPU ranks with gloo, the two in turn in one run. Prints the
median time of an update of either, and their ratio.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from parallel.parameters.whole_matrices import WholeMatrices
from parallel.world.runtime import Runtime
from trainer.config.sections import OptimConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder
from trainer.objectives.causal_lm import CausalLM
from trainer.optim.build import build_optimizer

MODEL = DecoderConfig(layers=8, hidden=256, heads=4, kv_heads=4, ffn_hidden=768, vocab=512)


def everywhere(
    matrices: WholeMatrices, parts: Iterable[Tensor], function: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """Process every matrix whole on every rank, as without sharing."""
    axis = matrices.mesh.shard
    for part in parts:
        assert axis.group is not None and part.shape[0] * axis.size == matrices.shape[0]
        whole = part.new_empty(matrices.shape)
        dist.all_gather(list(whole.chunk(axis.size)), part.contiguous(), group=axis.group)
        yield function(whole).chunk(axis.size)[axis.rank]


def work(rank: int, ranks: int, store: str, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    cfg = ParallelConfig(zero=1)

    def optimizer(parameters: Any) -> Any:
        return build_optimizer(parameters, OptimConfig(name="muon"), MODEL.plan())

    engine: Any = build_engine(
        layout=resolve(cfg, ranks), runtime=Runtime(rank, ranks, rank, torch.device("cpu")), cfg=cfg,
        plan=MODEL.plan(), model_factory=lambda: Decoder(MODEL),
        objective=CausalLM(), optimizer_factory=optimizer,
        precision="fp32", clip=1.0, seed=0, micro_batch=1, global_batch=ranks, positions=32,
        nominal_count=ranks * 32,
    )  # fmt: skip
    for parameter in engine._parameters:
        parameter.tensor.grad = torch.randn_like(parameter.tensor)
    # An optimiser calls the method that its members were given, so each way has members of its own.
    groups = [group for group in engine._optimizer.param_groups if group["kind"] == "muon"]
    ways = {
        "each by one": [group["members"] for group in groups],
        "all by all": [
            [replace(m, map_whole=partial(everywhere, m.map_whole.__self__)) for m in group["members"]]
            for group in groups
        ],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(2 * rounds + 2):
        name = list(ways)[number % 2]
        for group, members in zip(groups, ways[name], strict=True):
            group["members"] = members
        dist.barrier()
        begin = time.perf_counter()
        engine._optimizer.step()
        dist.barrier()
        if number >= 2:
            times[name].append(time.perf_counter() - begin)
    if rank == 0:
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        for name, seconds in medians.items():
            print(f"{name}: {seconds * 1e3:.1f} ms an update, {ranks} ranks")
        print(f"ratio {medians['each by one'] / medians['all by all']:.3f}")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (args.ranks, str(Path(folder) / "store"), args.rounds), nprocs=args.ranks)


if __name__ == "__main__":
    main()
