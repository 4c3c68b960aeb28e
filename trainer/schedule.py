"""Learning-rate schedules: pure functions of the step, so a resumed run needs no schedule state.

Step s is the number of updates already done: the first update uses `learning_rate(0, …)`.
"""

import math

from trainer.sections import OptimConfig

SCHEDULES = ("constant", "linear", "cosine", "wsd")


def learning_rate(step: int, cfg: OptimConfig, total_steps: int) -> float:
    """The rate of the update that follows `step` finished ones.

    Every schedule rises linearly over `warmup_steps` (the last warm-up update has the full rate) and, but for
    `constant`, ends at `min_lr_ratio * lr`. `cosine` is Loshchilov & Hutter's (arXiv 1608.03983) without
    restarts; `wsd` (warm-up, stable, decay: Hu et al., MiniCPM, arXiv 2404.06395) holds the rate and falls
    linearly over the last `decay_fraction` of the run, a shape Hägele et al. (arXiv 2405.18392) found best
    among coolings.
    """
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    floor = cfg.min_lr_ratio
    if cfg.schedule == "constant":
        return cfg.lr
    if cfg.schedule == "wsd":
        decay_steps = max(1, round(cfg.decay_fraction * total_steps))
        left = (total_steps - step) / decay_steps
        return cfg.lr * (floor + (1.0 - floor) * min(1.0, max(0.0, left)))
    done = (step - cfg.warmup_steps) / max(1, total_steps - cfg.warmup_steps)
    done = min(1.0, done)
    if cfg.schedule == "linear":
        return cfg.lr * (floor + (1.0 - floor) * (1.0 - done))
    if cfg.schedule == "cosine":
        return cfg.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done)))
    raise ValueError(f"optim.schedule: {cfg.schedule!r} is not one of {', '.join(SCHEDULES)}")
