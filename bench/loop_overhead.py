"""What the training loop costs over a bare PyTorch loop of the same model, optimiser and clipping.

`python bench/loop_overhead.py`: one process, the two loops in turn on the same batches, metrics logged
every step and checkpoint hooks on. They alternate step by step, so that both meet the same neighbours on the
machine, and each goes first every other time. Ours writes as a run does: after a look at the run's epoch.

Two models of the same number of tensors. At hidden 128 a step takes tens of milliseconds, and the ratio of
step times is what a user would see; a shared machine's noise is larger than what is measured there, so the
median comes with its 95 % interval. At hidden 16 next to nothing is computed: the difference is what the
loop itself costs, in microseconds.

Writes bench/results/loop_overhead.json.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from data.stream.batch import Batch
from parallel.world import runtime as runtimes
from trainer.checkpoint.manager import Checkpointer
from trainer.config import checks, reading
from trainer.config import run_config as configs
from trainer.evaluation.evaluate import Evaluator
from trainer.folder.fence import Fence
from trainer.loop import train
from trainer.metrics.meter import Meter
from trainer.models.build import build_model
from trainer.objectives.context import ObjectiveContext
from trainer.optim.schedule import learning_rate
from trainer.ranks import Ranks
from trainer.record.events import EventLog
from trainer.start.engine import make_engine
from trainer.state import Identity, TrainState
from trainer.steps import Steps

WARM_UP = 20
RESULTS = Path(__file__).parent / "results" / "loop_overhead.json"
MODELS = {
    "a step of tens of milliseconds": ["model.hidden=128", "model.vocab=1024", "data.seq_len=128"],
    "next to no computing": ["model.hidden=16", "model.vocab=64", "data.seq_len=16"],
}
CONFIG = """
name: loop_overhead
model: {kind: decoder, layers: 4, heads: 4}
data: {sources: [{path: unused}]}
optim: {lr: 1.0e-4, schedule: cosine}
train: {steps: 1000000, global_batch: 4, micro_batch: 4}
checkpoint: {every: 1000000}
"""


def make_batches(cfg: configs.RunConfig, count: int) -> list[list[Batch]]:
    draw = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        tokens = torch.randint(cfg.model.vocab, (cfg.train.micro_batch, cfg.data.seq_len + 1), generator=draw)
        rows = {"tokens": tokens[:, :-1].contiguous(), "following": tokens[:, 1:].contiguous()}
        batches.append([Batch(rows, tuple(range(cfg.train.micro_batch)))])
    return batches


class Bare:
    """The loop everybody writes first: forward, backward, clip, AdamW, one `.item()` for the log."""

    def __init__(self, cfg: configs.RunConfig) -> None:
        torch.manual_seed(0)
        self.cfg = cfg
        self.model = build_model(cfg.model)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": cfg.optim.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=cfg.optim.lr,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.step = 0

    def run(self, batches: list[list[Batch]]) -> float:
        for (batch,) in batches:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.cfg.optim, self.cfg.train.steps)
            targets = batch.tensors["following"]
            loss = self.model(batch.tensors["tokens"], targets=targets).sum() / (targets >= 0).sum()
            loss.backward()
            clip_grad_norm_(self.model.parameters(), self.cfg.optim.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss.item()
            self.step += 1
        return self.step


class Ours:
    """The real loop with its meter and checkpointer, in a run folder of its own."""

    def __init__(self, cfg: configs.RunConfig, stack: ExitStack) -> None:
        runtime = runtimes.start()
        layout = checks.layout(cfg, 1)
        self.cfg, self.state = cfg, TrainState()
        context = ObjectiveContext(cfg.seed, cfg.data.seq_len, cfg.model.vocab, 0, bytes)
        self.engine = make_engine(cfg, runtime, layout, context)
        cfg.folder.mkdir()
        fence = Fence(cfg.folder)
        fence.take()
        events = EventLog(cfg.folder / "events.jsonl", fence.check)
        self.meter = Meter.open(
            cfg,
            runtime=runtime,
            ranks=Ranks(),
            engine=self.engine,
            layout=layout,
            events=events,
            quarantined={},
            fence=fence,
        )
        self.checkpointer = Checkpointer(
            cfg.folder, every=cfg.checkpoint.every, keep=1, asynchronous=True, identity=lambda position:
            Identity(), events=events, logs=self.meter.logs,
            guard=fence.check,
        )  # fmt: skip
        self.meter.resume(self.state)
        stack.callback(self.meter.close)

    def run(self, batches: list[list[Batch]]) -> Any:
        return train(
            self.engine, Steps(batches), self.state, self.checkpointer, self.meter, self.cfg,
            evaluator=Evaluator([], every=0), stopping=lambda: False,
        )  # fmt: skip


def seconds(loop: Bare | Ours, batches: list[list[Batch]]) -> float:
    begin = time.perf_counter()
    loop.run(batches)
    return time.perf_counter() - begin


def pairs(overrides: list[str], steps: int) -> list[tuple[float, float]]:
    """Return the seconds of (our loop, the bare loop), step by step."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "loop_overhead.yaml"
        path.write_text(CONFIG)
        cfg = reading.load(path, [*overrides, f"run_dir={folder}/run"])
        batches = make_batches(cfg, 10)
        bare, ours = Bare(cfg), Ours(cfg, stack)
        found = []
        for number in range(WARM_UP + steps):
            order = (bare, ours) if number % 2 else (ours, bare)  # whoever runs second meets a warmer cache
            batch = [batches[number % len(batches)]]
            took = {loop: seconds(loop, batch) for loop in order}
            found.append((took[ours], took[bare]))
    return found[WARM_UP:]


def median(values: list[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval, from the order statistics: no distribution is assumed."""
    ranked = sorted(values)
    half = 0.98 * math.sqrt(len(ranked))
    low, high = int(len(ranked) / 2 - half), min(len(ranked) - 1, int(len(ranked) / 2 + half))
    return statistics.median(ranked), ranked[low], ranked[high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="steps of each loop")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {}
    for name, overrides in MODELS.items():
        found = pairs(overrides, args.steps)
        ratio, low, high = median([ours / bare for ours, bare in found])
        extra, least, most = (value * 1e6 for value in median([ours - bare for ours, bare in found]))
        bare = statistics.median(bare for _, bare in found) * 1e3
        print(
            f"{name}: bare {bare:.2f} ms; ours / bare {ratio:.4f} ({low:.4f} to {high:.4f}); "
            f"{extra:+.0f} µs a step ({least:+.0f} to {most:+.0f})"
        )
        results[name] = {
            "bare_ms": round(bare, 3),
            "ratio": [round(value, 4) for value in (ratio, low, high)],
            "extra_us": [round(value, 1) for value in (extra, least, most)],
        }
    machine = f"CPU, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}"
    about = {"machine": machine, "steps": args.steps, "interval": "median, 95 % interval of the median"}
    RESULTS.write_text(json.dumps({**about, "models": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
