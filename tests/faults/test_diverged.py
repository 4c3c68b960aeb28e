"""Runs that diverge, from outside: no checkpoint that is not finite, none that stops the run for good."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint.manifest import encode, read_manifest
from trainer.checkpoint.pieces.files import FileEntry, Listed, digest
from whole_runs import (
    environment,
    events,
    germinal,
    make_corpus,
    newest,
    records,
    tensors,
    train_here,
    write_config,
)

KILLER = Path(__file__).parents[1] / "helpers/programs/killer.py"
BAD = ("optim.lr=1e30", "optim.weight_decay=0")  # the weights stay finite, but no loss of theirs is


def steps_of(run: Path) -> list[str]:
    return sorted(entry.name for entry in (run / "checkpoints").glob("step-*"))


def losses_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in records(run / "metrics.jsonl") if "loss" in line]


def tiny(folder: Path, **changes: Any) -> Path:
    settings = {"model__layers": 1, "train__eval_every": 0, "optim__schedule": "constant"}
    settings |= {"optim__warmup_steps": 0, "checkpoint__every": 1, "train__steps": 2}
    return write_config(folder, make_corpus(folder), **(settings | changes))


def test_an_update_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    config, run = tiny(tmp_path), tmp_path / "run"
    assert train_here(config)
    assert germinal("train", config, "optim.eps=1e-60").returncode == 2, "0 in fp32"
    # The gradient of step 3 is finite; the update by it is not, and it is the last.
    done = germinal("train", config, "train.steps=3", "optim.lr=1e30", "optim.weight_decay=1e30")
    assert done.returncode == 1
    assert re.search(
        r"error: checkpoint of step 3 was not saved: tensor model\.\S+ holds a NaN or an inf", done.stderr
    )
    assert steps_of(run) == ["step-000000001", "step-000000002"]
    assert not events(run, "restart"), "it would come again, bit for bit"
    assert train_here(config, "train.steps=3")  # as if nothing had happened
    assert all(tensor.isfinite().all() for tensor in tensors(run).values())


def test_a_checkpoint_from_which_no_step_can_be_made_is_passed_over(tmp_path: Path) -> None:
    config, run = tiny(tmp_path), tmp_path / "run"
    assert train_here(config)
    # Finite, and so saved, but its loss is not: every step from here on would fail.
    done = germinal("train", config, "train.steps=4", *BAD)
    assert done.returncode == 1 and "not finite" in done.stderr
    assert steps_of(run)[-1] == "step-000000003"
    assert train_here(config, "train.steps=4")
    (fault,) = [event for event in events(run, "fault") if "set_aside" in event]
    assert "went back to step 2" in fault["reason"] and fault["set_aside"] == ["step-000000003.diverged-1"]
    assert [line["step"] for line in losses_of(run)] == [1, 2, 3, 4]
    straight = tmp_path / "straight"
    assert train_here(config, "train.steps=4", f"run_dir={straight}")
    assert losses_of(run) == losses_of(straight)
    assert records(run / "ledger.jsonl") == records(straight / "ledger.jsonl")
    there = tensors(straight)
    assert all(torch.equal(tensor, there[name]) for name, tensor in tensors(run).items())


def test_where_no_older_checkpoint_helps_the_run_ends_and_nothing_is_moved(tmp_path: Path) -> None:
    config, run = tiny(tmp_path, train__steps=1), tmp_path / "run"
    assert train_here(config, *BAD)
    done = germinal("train", config, "train.steps=2")
    assert done.returncode == 1 and "not finite" in done.stderr
    assert steps_of(run) == ["step-000000001"]
    with pytest.raises(RuntimeError, match="not finite"):
        train_here(config, "train.steps=2")
    assert steps_of(run) == ["step-000000001"]


def test_a_run_that_its_settings_make_diverge_goes_back_once(tmp_path: Path) -> None:
    """From step 2 on no step can be made, however often it is made anew from step 1."""
    config, run = tiny(tmp_path, train__steps=1), tmp_path / "run"
    assert train_here(config)
    bad = ("train.steps=4", *BAD)
    for _ in range(2):  # straight on; and back to step 1, and to the same end
        with pytest.raises(RuntimeError, match="not finite"):
            train_here(config, *bad)
    aside = ["step-000000002", "step-000000002.diverged-1"]
    assert steps_of(run)[1:] == aside
    for _ in range(2):
        with pytest.raises(RuntimeError, match="made anew from an older checkpoint with the same settings"):
            train_here(config, *bad)
        assert steps_of(run)[1:] == aside
    assert train_here(config, "train.steps=4")
    assert losses_of(run)[-1]["step"] == 4


def test_lines_from_before_it_went_back_do_not_hinder_the_next_save(tmp_path: Path) -> None:
    """An evaluation is written, the run goes back, and the step that is saved next is not logged."""
    config, run = tiny(tmp_path), tmp_path / "run"
    assert train_here(config)
    assert train_here(config, "train.steps=3", *BAD)
    copy_as_step(4, run)
    assert train_here(config, "train.steps=6", "train.eval_every=4", "train.log_every=5")
    assert len(events(run, "save")) == 2 + 1 + 4


def copy_as_step(step: int, run: Path) -> None:
    """The newest checkpoint again, whole in itself, as if it had been saved at `step`."""
    old = newest(run)
    new = old.with_name(f"step-{step:09d}")
    shutil.copytree(old, new)
    document = json.loads((old / "state.json").read_bytes())
    document["state"]["step"] = step
    data = json.dumps(document).encode()
    (new / "state.json").write_bytes(data)
    manifest = read_manifest(old)
    files = Listed({**manifest.files, "state.json": FileEntry(len(data), digest(data))})
    for name, content in encode(replace(manifest, files=files, step=step)).items():
        (new / name).write_bytes(content)


def killed(where: str, count: int, config: Path, *overrides: str) -> None:
    command = [sys.executable, KILLER, where, count, config, *overrides]
    done = subprocess.run([str(word) for word in command], env=environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


IN_THE_OLDER_ONES_STEP = 4 + 2  # four micro-batches of the step that fails, and then


def test_killed_while_it_looks_for_an_older_checkpoint_it_finds_all_of_them_again(tmp_path: Path) -> None:
    config, run = tiny(tmp_path, train__steps=1), tmp_path / "run"
    assert train_here(config, *BAD)
    copy_as_step(2, run)
    logs = {log: (run / log).read_bytes() for log in ("metrics.jsonl", "ledger.jsonl")}
    killed("micro_batch", IN_THE_OLDER_ONES_STEP, config, "train.steps=3")
    assert steps_of(run) == ["step-000000001", "step-000000002"]
    done = germinal("train", config, "train.steps=3")
    assert done.returncode == 1 and "not finite" in done.stderr
    assert steps_of(run) == ["step-000000001", "step-000000002"]
    assert {log: (run / log).read_bytes() for log in logs} == logs
    assert not [event for event in events(run, "fault") if "set_aside" in event]


@pytest.mark.parametrize(
    ("where", "count"),
    [
        pytest.param("micro_batch", IN_THE_OLDER_ONES_STEP, marks=pytest.mark.slow),
        pytest.param("rename", 1, marks=pytest.mark.slow),
        ("rename", 2),
    ],
)
def test_killed_while_it_goes_back_the_same_command_goes_back(tmp_path: Path, where: str, count: int) -> None:
    """In the older checkpoint's step; before the first, and between two that are set aside."""
    config, run, straight = tiny(tmp_path), tmp_path / "run", tmp_path / "straight"
    assert train_here(config)
    assert train_here(config, "train.steps=3", *BAD)
    copy_as_step(4, run)
    killed(where, count, config, "train.steps=5")
    assert train_here(config, "train.steps=5") and train_here(config, "train.steps=5", f"run_dir={straight}")
    assert [step for step in steps_of(run) if "diverged" not in step] == steps_of(straight)
    assert losses_of(run) == losses_of(straight)
    assert records(run / "ledger.jsonl") == records(straight / "ledger.jsonl")
    told = [event["set_aside"] for event in events(run, "fault") if "set_aside" in event]
    aside = {name for names in told for name in names}
    assert aside == {"step-000000003.diverged-1", "step-000000004.diverged-1"}
    assert aside == {step for step in steps_of(run) if "diverged" in step}
