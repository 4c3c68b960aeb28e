"""What the training loop costs over a bare PyTorch loop of the same model, optimiser and clipping.

`python bench/loop_overhead.py`: one process, the two loops in turn on the same batches, metrics logged
every step and checkpoint hooks on. Prints the ratio of step times, pair by pair, and the overhead in
microseconds a step.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from data.batch import Batch
from parallel import runtime as runtimes
from trainer import config as configs
from trainer.checkpoint.manager import Checkpointer
from trainer.evaluate import Evaluator
from trainer.loop import train
from trainer.metrics.events import EventLog
from trainer.metrics.meter import Meter
from trainer.models.build import build_model
from trainer.run import make_engine
from trainer.schedule import learning_rate
from trainer.state import Identity, TrainState

CONFIG = """
name: loop_overhead
model: {kind: decoder, layers: 4, hidden: 128, heads: 4, vocab: 1024}
data: {sources: [{path: unused}], seq_len: 128}
optim: {lr: 1.0e-4, schedule: cosine}
train: {steps: 1000000, global_batch: 4, micro_batch: 4}
checkpoint: {every: 1000000}
"""


def make_batches(cfg: configs.RunConfig, count: int) -> list[list[Batch]]:
    draw = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        tokens = torch.randint(cfg.model.vocab, (cfg.train.micro_batch, cfg.data.seq_len + 1), generator=draw)
        rows = {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
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
            targets = batch.tensors["targets"]
            loss = self.model(batch.tensors["tokens"], targets=targets).sum() / (targets != -100).sum()
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
        layout = configs.layout(cfg, 1)
        self.cfg, self.state = cfg, TrainState()
        self.engine = make_engine(cfg, runtime, layout)
        events = EventLog(cfg.folder / "events.jsonl")
        self.meter = Meter.open(
            cfg, runtime=runtime, engine=self.engine, layout=layout, events=events, quarantined={}
        )
        self.checkpointer = Checkpointer(
            cfg.folder, every=cfg.checkpoint.every, keep=1, asynchronous=True, identity=lambda position:
            Identity(), events=events, logs=self.meter.logs,
        )  # fmt: skip
        self.meter.resume(self.state)
        stack.callback(self.meter.close)

    def run(self, batches: list[list[Batch]]) -> Any:
        return train(
            self.engine, batches, self.state, self.checkpointer, self.meter, self.cfg,
            evaluator=Evaluator([], every=0), stopping=lambda: False,
        )  # fmt: skip


def seconds(loop: Bare | Ours, batches: list[list[Batch]]) -> float:
    begin = time.perf_counter()
    loop.run(batches)
    return (time.perf_counter() - begin) / len(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=10, help="steps of each loop in a round")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "loop_overhead.yaml"
        path.write_text(CONFIG)
        cfg = configs.load(path, [f"run_dir={folder}/run"])
        batches = make_batches(cfg, args.steps)
        bare, ours = Bare(cfg), Ours(cfg, stack)
        pairs = []
        for number in range(args.rounds + 2):
            order = (bare, ours) if number % 2 else (ours, bare)  # whoever runs second meets a warmer cache
            took = {loop: seconds(loop, batches) for loop in order}
            pairs.append((took[ours], took[bare]))
        pairs = pairs[2:]  # warm-up
    ratios = sorted(a / b for a, b in pairs)
    overhead = statistics.median(a - b for a, b in pairs) * 1e6
    print(f"bare loop {statistics.median(b for _, b in pairs) * 1e3:.2f} ms a step, {args.threads} threads")
    print(f"ours / bare: median {statistics.median(ratios):.4f}, quartiles {ratios[len(ratios) // 4]:.4f} "
          f"{ratios[3 * len(ratios) // 4]:.4f}; {overhead:+.0f} µs a step")  # fmt: skip


if __name__ == "__main__":
    main()
