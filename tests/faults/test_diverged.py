"""Runs that diverge, from outside: no checkpoint that is not finite, none that stops the run for good."""

import re
from pathlib import Path
from typing import Any

import torch

from whole_runs import events, germinal, make_corpus, records, tensors, train, write_config


def steps_of(run: Path) -> list[str]:
    return sorted(entry.name for entry in (run / "checkpoints").glob("step-*"))


def tiny(folder: Path, **changes: Any) -> Path:
    settings = {"model__layers": 1, "train__eval_every": 0, "optim__schedule": "constant"}
    settings |= {"optim__warmup_steps": 0, "checkpoint__every": 1, "train__steps": 2}
    return write_config(folder, make_corpus(folder), **(settings | changes))


def test_an_update_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    config, run = tiny(tmp_path), tmp_path / "run"
    train(config)
    assert germinal("train", config, "optim.eps=1e-60").returncode == 2, "0 in fp32"
    # The gradient of step 3 is finite; the update by it is not, and it is the last.
    done = germinal("train", config, "train.steps=3", "optim.lr=1e30", "optim.weight_decay=1e30")
    assert done.returncode == 1
    assert re.search(
        r"error: checkpoint of step 3 was not saved: tensor model\.\S+ holds a NaN or an inf", done.stderr
    )
    assert steps_of(run) == ["step-000000001", "step-000000002"]
    train(config, "train.steps=3")  # as if nothing had happened
    assert all(tensor.isfinite().all() for tensor in tensors(run).values())


def test_a_checkpoint_from_which_no_step_can_be_made_is_passed_over(tmp_path: Path) -> None:
    config, run = tiny(tmp_path), tmp_path / "run"
    train(config)
    # Finite, and so saved, but its loss is not: every step from here on would fail.
    done = germinal("train", config, "train.steps=4", "optim.lr=1e30", "optim.weight_decay=0")
    assert done.returncode == 1 and "not finite" in done.stderr
    assert steps_of(run)[-1] == "step-000000003"
    train(config, "train.steps=4")
    (fault,) = [event for event in events(run, "fault") if "set_aside" in event]
    assert "went back to step 2" in fault["reason"] and fault["set_aside"] == ["step-000000003.damaged-1"]
    losses = [line for line in records(run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4]
    straight = tmp_path / "straight"
    train(config, "train.steps=4", f"run_dir={straight}")
    assert losses == [line for line in records(straight / "metrics.jsonl") if "loss" in line]
    assert records(run / "ledger.jsonl") == records(straight / "ledger.jsonl")
    there = tensors(straight)
    assert all(torch.equal(tensor, there[name]) for name, tensor in tensors(run).items())


def test_where_no_older_checkpoint_helps_the_run_ends_and_nothing_is_moved(tmp_path: Path) -> None:
    config, run = tiny(tmp_path, train__steps=1), tmp_path / "run"
    train(config, "optim.lr=1e30", "optim.weight_decay=0")
    for _ in range(2):
        done = germinal("train", config, "train.steps=2")
        assert done.returncode == 1 and "not finite" in done.stderr
        assert steps_of(run) == ["step-000000001"]
