"""Sets the CPU threads of a rank, and reports the number."""

from __future__ import annotations

import sys

import torch

from parallel.world.runtime import Runtime
from trainer.config.run_config import RunConfig
from trainer.process import cores
from trainer.ranks import Ranks


def settle(cfg: RunConfig, runtime: Runtime, ranks: Ranks) -> None:
    """Set this rank's threads: train.threads, else the environment's number, else its share of the cores
    (`cores.share`). Collective.

    Rank 0 prints the number; and a warning where a run goes on with another number than it began with, for on
    a CPU its sums then come in another order.
    """
    mine = cores.Allotment.of_this_process()
    sharers = ranks.by_rank_zero(mine, cores.sharers)
    before = ranks.on_rank_zero(lambda: cores.begun_with(cfg.folder, runtime.world))
    threads = cores.Threads(cfg.train.threads, "train.threads")
    if not cfg.train.threads and runtime.chooses_threads:
        threads = cores.share(mine, sharers, begun=before, at_most=runtime.cpus)
        if runtime.is_writer:
            print(f"{cfg.folder}: {threads}", file=sys.stderr, flush=True)
    if threads.count:
        torch.set_num_threads(threads.count)
    else:
        threads = cores.Threads(runtime.threads, "by the environment")
    if runtime.is_writer and before and before != threads.count and runtime.device.type == "cpu":
        print(
            f"{cfg.folder}: {threads}, but {before} at the last start: sums may differ in their last bits; "
            f"train.threads={before} makes them the same",
            file=sys.stderr,
            flush=True,
        )
