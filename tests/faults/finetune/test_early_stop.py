"""Runs that keep their best checkpoint and end when evaluations get no better; killed and run again, too."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from launch.checks import check_job
from launch.job import Job
from pictures import write_folders
from trainer.checkpoint import folder as folders
from whole_runs import environment, records, tensors, train_here

KILLER = Path(__file__).resolve().parents[3] / "tests/helpers/programs/killer.py"
VIT = {
    "kind": "vision",
    "image_size": 16,
    "patch_size": 4,
    "layers": 2,
    "hidden": 32,
    "heads": 4,
    "classes": 3,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_folders(folder / "in", ("cat", "dog", "yak"), 20)
    prepare(
        [str(folder / "in")], folder / "corpus", tokenizer="bytes", recipe=Recipe(block_documents=5),
        heldout=0.2, workers=1, progress=False,
    )  # fmt: skip
    return folder / "corpus"


def written(folder: Path, corpus: Path, **finetune: Any) -> Path:
    """A run whose held-out loss soon gets worse, for its rate is far too high."""
    config = {
        "name": "run",
        "run_dir": str(folder / "run"),
        "model": VIT,
        "objective": {"kind": "classification"},
        "data": {
            "sources": [{"path": str(corpus / "train")}],
            "heldout": [{"path": str(corpus / "heldout"), "name": "held"}],
            "seq_len": 1,
            "packing": "one",
            "image_size": 16,
        },
        "optim": {"lr": 3.0e-2, "weight_decay": 0.0, "schedule": "constant"},
        "train": {"steps": 60, "global_batch": 8, "micro_batch": 4, "eval_every": 2},
        "checkpoint": {"every": 3, "keep": 1},
        "finetune": {"metric": "loss", "patience": 4, "keep_best": True} | finetune,
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def evaluations(run: Path) -> dict[int, float]:
    return {
        line["step"]: line["eval"]["held"]["loss"]
        for line in records(run / "metrics.jsonl")
        if "eval" in line
    }


def test_a_run_ends_when_it_gets_no_better_and_its_best_checkpoint_stays(
    corpus: Path, tmp_path: Path
) -> None:
    assert train_here(written(tmp_path, corpus))
    run = tmp_path / "run"
    losses = evaluations(run)
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + 4 * 2 < 60
    assert folders.steps(run / "checkpoints") == [max(losses), best]
    (event,) = (one for one in records(run / "events.jsonl") if one["kind"] == "early_stop")
    assert event["step"] == max(losses) and f"after step {best}" in event["reason"]
    before = records(run / "metrics.jsonl")
    assert train_here(run)  # nothing is left to do
    assert records(run / "metrics.jsonl") == before


def test_killed_and_run_again_it_ends_at_the_same_step_with_the_same_best(
    corpus: Path, tmp_path: Path
) -> None:
    assert train_here(written(tmp_path / "undisturbed", corpus))
    undisturbed, killed = tmp_path / "undisturbed/run", tmp_path / "killed/run"
    last = max(evaluations(undisturbed))
    config = written(tmp_path / "killed", corpus)
    command = [sys.executable, "-P", str(KILLER), "step", str(last - 1), str(config)]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert train_here(killed)
    assert records(killed / "metrics.jsonl") == records(undisturbed / "metrics.jsonl")
    assert folders.steps(killed / "checkpoints") == folders.steps(undisturbed / "checkpoints")
    found, expected = tensors(killed), tensors(undisturbed)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("finetune", "message"), [
    ({"metric": "accuracy"}, "finetune.metric=accuracy: an evaluation of objective.kind=class"),
])  # fmt: skip
def test_an_unknown_figure_is_one_line(
    finetune: dict[str, Any], message: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train_here(written(tmp_path, corpus, **finetune))


@pytest.mark.parametrize(("finetune", "message"), [
    ({"metric": ""}, "finetune.patience=4 needs finetune.metric, and finetune.metric=: set that"),
    ({"class_weights": [1, 2]}, "2 weights for model.classes=3"),
    ({"class_weights": [0, 0, 0]}, "no class counts"),
    ({"class_weights": [1, -1, 0]}, "must be 0 or more"),
    ({"method": "lora", "targets": ["wx"]}, "'wx' is no linear layer in a block of this model: known are wq"),
    ({"method": "lora", "targets": []}, "must not be empty"),
    ({"method": "full", "adapter": "x"}, "finetune.adapter=x: finetune.method=full has no adapter: set"),
    ({"method": "qlora"}, "not one of none, full, probe, lora, adapters; did you mean lora?"),
    ({"method": "lora", "rank": 0}, "must be at least 1"),
])  # fmt: skip
def test_what_has_no_place_is_one_line(
    finetune: dict[str, Any], message: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        check_job(Job(str(written(tmp_path, corpus, **finetune)), (), 1))
    assert "\n" not in str(refused.value)
