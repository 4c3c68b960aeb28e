"""Learning-rate schedules: pure functions of the step, so a resumed run needs no schedule state.

Step s is the number of updates already done: the first update uses `learning_rate(0, …)`.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_args

from trainer.config.sections import OptimConfig, Schedule

SCHEDULES = get_args(Schedule)


def learning_rate(step: int, cfg: OptimConfig, total_steps: int) -> float:
    """Return the rate of the update that follows `step` finished ones.

    Every schedule rises linearly over `warmup_steps` (the last warm-up update has the full rate) and, but for
    `constant`, ends at `min_lr_ratio * lr`:

    linear: falls linearly.
    cosine: falls as Loshchilov & Hutter's (arXiv:1608.03983), without restarts.
    wsd (warm-up, stable, decay: Hu et al., MiniCPM, arXiv:2404.06395): holds the rate, and falls linearly
        over the last `decay_fraction` of the run; Hägele et al. (arXiv:2405.18392) found this decay the best.
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


def decay_begins(cfg: OptimConfig, total_steps: int) -> int:
    """Return the number of steps after which wsd's rate begins to fall; 0 for other schedules."""
    decay_steps = round(cfg.decay_fraction * total_steps)
    return max(0, total_steps - decay_steps) if cfg.schedule == "wsd" and decay_steps > 1 else 0


def decay_from(step: int, cfg: OptimConfig, total_steps: int) -> tuple[int, float | None]:
    """Return the train.steps and the optim.decay_fraction with which wsd's rate would fall from `step` on.

    Either of the two is enough. There is no such fraction (None) where the run ends at `step`.
    """
    steps = int(step / (1.0 - cfg.decay_fraction))
    while steps - round(cfg.decay_fraction * steps) < step:
        steps += 1
    for digits in range(1, 16):
        fraction = float(f"{(total_steps - step) / total_steps:.{digits}g}")
        if decay_begins(replace(cfg, decay_fraction=fraction), total_steps) == step:
            return steps, fraction
    return steps, None


def of_settings(settings: Mapping[str, Any]) -> tuple[OptimConfig, int]:
    """Return the schedule's config and the steps of the run, from the dotted keys that a checkpoint keeps."""
    known = {field.name for field in fields(OptimConfig)}
    split = [(key.partition("."), value) for key, value in settings.items()]
    optim = {key: value for (section, _, key), value in split if section == "optim" and key in known}
    return OptimConfig(**optim), settings["train.steps"]


def jump(step: int, now: Mapping[str, Any], then: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return (rate of update `step`, rate of the next) where changed settings make the learning rate jump.

    It jumps only where the next rate differs by more than 1 % of the highest `optim.lr` both from the last
    step's rate and from what the old settings would have given. A resume reports a jump as an event; nothing
    is refused.

    step: updates that were done when the run was resumed.
    now: the settings that the run goes on with, by dotted key.
    then: those it was saved with.

    None where it does not jump, before the first step, and where `then` does not say `train.steps`.
    """
    if not step or "train.steps" not in then:
        return None
    before, after = of_settings(then), of_settings(now)
    last, following = learning_rate(step - 1, *before), learning_rate(step, *after)
    least = 0.01 * max(before[0].lr, after[0].lr)
    if abs(following - learning_rate(step, *before)) <= least or abs(following - last) <= least:
        return None
    return last, following
