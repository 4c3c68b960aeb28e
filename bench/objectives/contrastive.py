"""A contrastive step over 32 micro-batches against a hand-written GradCache: same model, weights, batches,
optimiser and clipping, in turns.

`python bench/objectives/contrastive.py`: on a CPU, one thread. The contenders:

* ours: engine and objective, from the stream's tensors to the updated weights.
* GradCache: what a user writes after Gao et al. (2021, arXiv:2101.06983; github.com/luyug/GradCache): forward
  of all micro-batches without gradients, the loss over all embeddings and its gradient with respect to them,
  forward and backward of each micro-batch again. Clipping by torch, fused AdamW.

Their losses over the first steps are equal to 1e-5. A round gives one ratio of neighbours in time; median and
quartiles are printed and go to bench/results/contrastive.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from data.stream.batch import Batch
from launch.local.rank_commands import KEEP_MEMORY
from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from parallel.parameters.initialize import draw
from parallel.world.runtime import Runtime
from trainer.config.sections import OptimConfig
from trainer.models.build import build_model
from trainer.models.towers.text_pair_config import TextPairConfig
from trainer.objectives.build import build_objective
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.contrastive_config import ClipConfig
from trainer.objectives.pairs import text_weights
from trainer.optim.build import build_optimizer

RESULTS = Path(__file__).parents[1] / "results" / "contrastive.json"
MODEL = TextPairConfig(
    layers=4,
    hidden=128,
    heads=4,
    vocab=2048,
    norm_place="post",
    activation="gelu",
    biases=True,
    positions="learned",
    max_positions=64,
    window=0,
    embedding=64,
    learnt="scale",
)
TEXT, ROWS, MICRO_BATCHES, POOL = 32, 4, 32, 8  # tokens of a text, rows of a micro-batch, different batches
SEQ, BATCH = 2 * TEXT, ROWS * MICRO_BATCHES
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
CPU = torch.device("cpu")
CHECKED, WARM_UP, TOLERANCE = 3, 2, 1e-5


def batches(number: int) -> list[Batch]:
    """The micro-batches of a step: rows of two texts, as `data.packing=pair` makes them."""
    draws = torch.Generator().manual_seed(number % POOL)
    length = torch.randint(TEXT // 2, TEXT + 1, (BATCH, 2), generator=draws)
    place = torch.arange(TEXT).expand(BATCH, 2, TEXT)
    padding = place >= length[..., None]
    tokens = torch.randint(1, MODEL.vocab, (BATCH, 2, TEXT), generator=draws).masked_fill(padding, 0)
    tensors = {
        "tokens": tokens.flatten(1),
        "documents": (padding + 2 * torch.arange(2)[:, None]).flatten(1),
        "positions": torch.where(padding, place - length[..., None], place).flatten(1),
        "length": length,
    }
    parts = {name: tensor.split(ROWS) for name, tensor in tensors.items()}
    return [
        Batch({name: of[i] for name, of in parts.items()}, tuple(range(i * ROWS, (i + 1) * ROWS)))
        for i in range(MICRO_BATCHES)
    ]


class Contender(Protocol):
    def step(self, given: list[Batch]) -> float:
        """Train on a step's micro-batches; return the loss."""


class Ours:
    def __init__(self) -> None:
        cfg, plan, objective = ParallelConfig(), MODEL.plan(), ClipConfig()
        optim = OptimConfig(lr=LR, betas=list(BETAS), weight_decay=DECAY)
        self._engine = build_engine(
            layout=resolve(cfg, 1),
            cfg=cfg,
            runtime=Runtime(0, 1, 0, CPU),
            plan=plan,
            model_factory=lambda: build_model(MODEL),
            objective=build_objective(objective, ObjectiveContext(0, SEQ, MODEL.vocab, 0, bytes, MODEL)),
            optimizer_factory=lambda parameters: build_optimizer(parameters, optim, plan),
            precision="fp32",
            clip=CLIP,
            seed=0,
            micro_batch=ROWS,
            global_batch=BATCH,
            positions=SEQ,
            nominal_count=BATCH,
        )

    def step(self, given: list[Batch]) -> float:
        result = self._engine.step(given, lr=LR)
        return result.loss_sum / result.count


class GradCache:
    def __init__(self) -> None:
        self._model: Any = build_model(MODEL).train()
        plan = MODEL.plan()
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(draw(name, tuple(parameter.shape), plan, 0, CPU))
        parameters = dict(self._model.named_parameters())
        spared = [p for n, p in parameters.items() if plan.no_decay(n, tuple(p.shape))]
        decayed = [p for n, p in parameters.items() if not plan.no_decay(n, tuple(p.shape))]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": spared, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

    def _embed(self, batch: Batch) -> Tensor:
        t = batch.tensors
        weights = text_weights(t["length"], SEQ, MODEL.pool)
        return self._model(t["tokens"], positions=t["positions"], documents=t["documents"], weights=weights)

    def step(self, given: list[Batch]) -> float:
        with torch.no_grad():
            cached = torch.cat([self._embed(batch) for batch in given])
        cached.requires_grad_()
        a, b = (F.normalize(side, dim=1) for side in cached[:, :-1].chunk(2, dim=1))
        logits, own = cached[:, -1].mean().exp() * a @ b.T, torch.arange(BATCH)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        loss.backward()
        assert cached.grad is not None
        for batch, gradient in zip(given, cached.grad.split(ROWS)):
            torch.dot(self._embed(batch).flatten(), gradient.flatten()).backward()
        clip_grad_norm_(self._model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()


def measure(rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each contender, by round."""
    torch.set_num_threads(1)
    contenders: dict[str, Contender] = {"ours": Ours(), "GradCache": GradCache()}
    data = [batches(number) for number in range(POOL)]
    for number in range(CHECKED):
        mine, theirs = (one.step(data[number]) for one in contenders.values())
        assert abs(mine - theirs) < TOLERANCE * theirs, f"step {number}: {mine} and {theirs}"
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for number in range(WARM_UP + rounds):
        order.reverse()
        for name in order:
            begin = time.perf_counter()
            for step in range(steps):
                contenders[name].step(data[(number * steps + step) % POOL])
            if number >= WARM_UP:
                seconds[name].append((time.perf_counter() - begin) / steps)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="of a contender in each round")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inside:  # as `germinal train` starts a rank: memory is kept, not returned and faulted in anew
        command = [sys.executable, __file__, "--inside", f"--rounds={args.rounds}", f"--steps={args.steps}"]
        raise SystemExit(subprocess.run(command, env=os.environ | KEEP_MEMORY, check=False).returncode)
    seconds = measure(args.rounds, args.steps)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["GradCache"], strict=True)]
    low, middle, high = (round(value, 4) for value in statistics.quantiles(ratios, n=4))
    medians = {name: round(statistics.median(values) * 1e3, 1) for name, values in seconds.items()}
    print(f"{MICRO_BATCHES} micro-batches of {ROWS} pairs: {medians} ms a step")
    print(f"ours / GradCache: {middle:.3f} ({low:.3f} to {high:.3f})")
    found = {"milliseconds": medians, "ours / GradCache": [middle, low, high], "rounds": args.rounds}
    about = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__}
    RESULTS.write_text(json.dumps(about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
