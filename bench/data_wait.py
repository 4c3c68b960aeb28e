"""The share of a training step that is spent waiting for data, in a real run.

    python bench/data_wait.py [--steps 300]

A corpus made by `prepare` from the standard library's source files, a small decoder, and what
`trainer.run.assemble` builds of a config: `trainer.loop.train` with the loader in it. Only the loader's
`next` is timed, and the time between two of them, which is the step. One thread computes, the loader's
reads ahead beside it. Then the same while as many processes as there are cores do nothing but count: on a
machine that has no core to spare.

The first steps are left out: there the queue fills and the allocator warms. Printed are the median step's
share, the share of all steps together (which a single long wait would show in), and the longest wait.
Writes bench/results/data_wait.json.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from prepare import texts, write_jsonl

from data.prepare.prepare import prepare
from data.stream.batch import Batch
from data.tokenizer import training
from parallel.world import runtime as runtimes
from trainer.config import reading
from trainer.run import assemble
from trainer.steps import Steps

GOAL = 0.001
WARM_UP = 10
RESULTS = Path(__file__).parent / "results" / "data_wait.json"
CONFIG = """
name: data_wait
model: {kind: decoder, layers: 4, hidden: 128, heads: 4, vocab: 2048}
data: {seq_len: 128}
optim: {lr: 1.0e-3, schedule: cosine}
train: {global_batch: 8, micro_batch: 4}
checkpoint: {every: 1000000}
"""


class Timed:
    """A run's steps, timed.

    waits: seconds inside each `next`.
    steps: seconds between two of them.
    """

    def __init__(self, inner: Steps) -> None:
        self.inner = inner
        self.exchange_next = inner.exchange_next
        self.waits: list[float] = []
        self.steps: list[float] = []
        self._returned = 0.0

    @property
    def needs_exchange(self) -> bool:
        return self.inner.needs_exchange

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        asked = time.perf_counter()
        if self._returned:
            self.steps.append(asked - self._returned)
        batches = next(self.inner)
        self._returned = time.perf_counter()
        self.waits.append(self._returned - asked)
        return batches


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run processes that only count, for as long as the context lasts."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(config: Path, overrides: list[str]) -> dict[str, Any]:
    """Train one run to its end; return its step and waiting times."""
    cfg = reading.load(config, overrides)
    with ExitStack() as stack:
        run = assemble(cfg, runtimes.start(), stack)
        timed = Timed(run.steps)
        run.steps = timed  # type: ignore[assignment]
        assert run()
    waits, steps = timed.waits[WARM_UP : len(timed.steps)], timed.steps[WARM_UP:]
    shares = [wait / (wait + step) for wait, step in zip(waits, steps, strict=True)]
    return {
        "step_ms": round(statistics.median(steps) * 1e3, 1),
        "wait_us": round(statistics.median(waits) * 1e6, 1),
        "longest_wait_us": round(max(waits) * 1e6, 1),
        "median_share": round(statistics.median(shares), 7),
        "share_of_all": round(sum(waits) / (sum(waits) + sum(steps)), 7),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cores = os.cpu_count() or 1
    cases = {"alone": 0, f"beside {cores} busy processes": cores}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_jsonl(base / "in.jsonl", 6_000_000)
        training.train("bpe", texts(1_000_000), 2048).save(str(base / "tokenizer.json"))
        prepare([str(base / "in.jsonl")], base / "corpus", tokenizer=base / "tokenizer.json", progress=False)
        config = base / "data_wait.yaml"
        config.write_text(CONFIG)
        for number, (name, processes) in enumerate(cases.items()):
            overrides = [
                f"run_dir={base}/run{number}",
                f"data.sources=[{{path: {base}/corpus}}]",
                f"train.steps={WARM_UP + args.steps}",
            ]
            with busy(processes):
                found = results[name] = measure(config, overrides)
            print(
                f"{name}: step {found['step_ms']} ms, wait {found['wait_us']} µs (longest "
                f"{found['longest_wait_us']}), share {found['median_share']:.5%} in the median, "
                f"{found['share_of_all']:.5%} of all (goal: at most {GOAL:.1%})",
                file=sys.stderr,
            )
    about = {
        "machine": f"CPU, {cores} cores, 1 thread, torch {torch.__version__}",
        "steps": args.steps,
        "goal": GOAL,
    }
    RESULTS.write_text(json.dumps({**about, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
