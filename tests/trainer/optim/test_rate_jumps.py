"""What a resume says of a learning rate that another schedule takes elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint.resume import _rate_jumps
from trainer.config.sections import OptimConfig
from trainer.optim.schedule import decay_begins, decay_from, jump


def settings(steps: int, **optim: Any) -> dict[str, Any]:
    keys = {"lr": 0.003, "schedule": "wsd", "warmup_steps": 0, "decay_fraction": 0.2, **optim}
    return {"train.steps": steps, **{f"optim.{key}": value for key, value in keys.items()}}


def test_a_rate_that_stays_is_no_jump_though_the_old_schedule_was_over() -> None:
    assert jump(4, settings(9, decay_fraction=0.1), settings(4, decay_fraction=0.1)) is None
    assert jump(4, settings(9, lr=0.002), settings(4, decay_fraction=0.1)) == (0.003, 0.002)


def test_a_decay_that_began_before_says_what_has_it_begin_here(tmp_path: Path) -> None:
    told = _rate_jumps(tmp_path, 1820, settings(2000), settings(3000))
    assert told == (
        "the learning rate was 0.003 at step 1820, and is 0.00135 at step 1821, for the decay began after "
        "step 1600: with train.steps=2275 or optim.decay_fraction=0.09 it begins here"
    )
    for keys in ({"steps": 2275}, {"steps": 2000, "decay_fraction": 0.09}):
        assert _rate_jumps(tmp_path, 1820, settings(**keys), settings(3000)) == ""


@pytest.mark.parametrize("fraction", [0.0013, 0.1, 0.2, 1 / 3, 0.7, 0.95])
@pytest.mark.parametrize("step", [3, 17, 1820, 99_991])
def test_either_key_has_the_decay_begin_after_the_step(step: int, fraction: float) -> None:
    cfg = OptimConfig(schedule="wsd", decay_fraction=fraction)
    for total in (step + 2, step + 7, 3 * step):
        steps, other = decay_from(step, cfg, total)
        assert steps - round(fraction * steps) == step
        assert other and decay_begins(OptimConfig(schedule="wsd", decay_fraction=other), total) == step
    assert decay_from(step, cfg, step)[1] is None
