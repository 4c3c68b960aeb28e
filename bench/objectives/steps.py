"""What the measurements of steps in this folder share: our engine, the optimiser of hand-written loops, the
order in which contenders take turns, and the file of figures.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from launch.local.rank_commands import KEEP_MEMORY
from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.engine import Engine
from parallel.layout.layout import resolve
from parallel.world.runtime import Runtime
from trainer.config.sections import OptimConfig
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.objectives.build import build_objective
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.context import ObjectiveContext
from trainer.optim.build import build_optimizer

RESULTS = Path(__file__).parents[1] / "results"
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
CPU = torch.device("cpu")
CHECKED, WARM_UP, TOLERANCE = 3, 2, 1e-5
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}

Seconds = dict[str, dict[str, list[float]]]
"""Clock → contender → seconds of a step in each round."""


class Contender(Protocol):
    def step(self, number: int) -> float:
        """Train on the batch of step `number`; return the mean loss."""


def our_engine(
    model: ModelConfig,
    objective: ObjectiveConfig,
    context: ObjectiveContext,
    *,
    micro_batch: int,
    global_batch: int,
) -> Engine:
    """Return the engine that `germinal train` makes of these on one process, in fp32."""
    cfg, plan = ParallelConfig(), model.plan()
    optim = OptimConfig(lr=LR, betas=list(BETAS), weight_decay=DECAY)
    return build_engine(
        layout=resolve(cfg, 1),
        cfg=cfg,
        runtime=Runtime(0, 1, 0, CPU),
        plan=plan,
        model_factory=lambda: build_model(model),
        objective=build_objective(objective, context),
        optimizer_factory=lambda parameters: build_optimizer(parameters, optim, plan),
        precision="fp32",
        clip=CLIP,
        seed=0,
        micro_batch=micro_batch,
        global_batch=global_batch,
        positions=model.positions_of_row(context.seq_len),
        nominal_count=global_batch * objective.targets_per_row(context.seq_len),
    )


def fused_adamw(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return what a hand-written loop uses: weight decay for matrices alone."""
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)


def check_losses(contenders: Mapping[str, Contender]) -> None:
    """Take the first steps with each contender. AssertionError where a loss is not ours."""
    losses = {name: [one.step(number) for number in range(CHECKED)] for name, one in contenders.items()}
    for name, found in losses.items():
        off = max(abs(a / b - 1) for a, b in zip(found, losses["ours"], strict=True))
        assert off < TOLERANCE, f"{name} is off by {off:.1e}: {found}, ours {losses['ours']}"


def in_turns(contenders: Mapping[str, Contender], rounds: int, steps: int) -> Seconds:
    """Let each contender take so many steps in each round; the order is turned around from round to round."""
    seconds: Seconds = {clock: {name: [] for name in contenders} for clock in CLOCKS}
    order, number = list(contenders), CHECKED
    for turn in range(WARM_UP + rounds):
        order.reverse()
        for name in order:
            begin = {clock: now() for clock, now in CLOCKS.items()}
            for step in range(steps):
                contenders[name].step(number + step)
            if turn >= WARM_UP:
                for clock, now in CLOCKS.items():
                    seconds[clock][name].append((now() - begin[clock]) / steps)
        number += steps
    return seconds


def figures(seconds: Seconds) -> dict[str, Any]:
    """Return the medians, and ours over each other's: one ratio a round."""
    ratios, rounds = {}, 0
    for clock, of_clock in seconds.items():
        for other in list(of_clock)[1:]:
            pairs = [mine / theirs for mine, theirs in zip(of_clock["ours"], of_clock[other], strict=True)]
            low, middle, high = (round(q, 4) for q in statistics.quantiles(pairs, n=4))
            ratios[f"ours / {other}, {clock} time"] = [middle, low, high]
            rounds = len(pairs)
    return {
        "rounds": rounds,
        "step_ms": {
            clock: {name: round(1e3 * statistics.median(values), 1) for name, values in found.items()}
            for clock, found in seconds.items()
        },
        "load": os.getloadavg()[1],
        "ratios": ratios,
        "order": "median, lower and upper quartile of one ratio a round",
    }


def machine() -> str:
    """Return where figures are from."""
    return f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}"


def report(seconds: Seconds, about: Mapping[str, Any], file: str) -> None:
    """Print the figures of steps; write them into bench/results/`file`."""
    result = {"ran": machine(), **about, **figures(seconds)}
    print(json.dumps(result, indent=1))
    (RESULTS / file).write_text(json.dumps(result, indent=1) + "\n")


def run(measure: Callable[[int, int], None], about: str | None, rounds: int) -> None:
    """Call measure(rounds, steps) in a process that begins as `germinal train` starts a rank: memory is kept
    and not given back, alike for all contenders.

    about: the script's docstring.
    rounds: how many, where the command does not say.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=2, help="steps of a contender at a time")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.in_process:
        again_as_a_rank()
    torch.set_num_threads(1)
    measure(args.rounds, args.steps)


def again_as_a_rank() -> None:
    """Run this script again with `--in-process`, in the environment of a rank, and end with its exit code."""
    command = [sys.executable, *sys.argv, "--in-process"]
    env = os.environ | KEEP_MEMORY | {"OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run(command, env=env, check=False).returncode)
