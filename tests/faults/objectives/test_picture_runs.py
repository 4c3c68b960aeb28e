"""Whole runs on pictures: killed and run again, verified, refused in one line; a user's own model too."""

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
from whole_runs import environment, germinal, records, tensors, train_here

ROOT = Path(__file__).resolve().parents[3]
KILLER = ROOT / "tests/helpers/programs/killer.py"
VIT = {"kind": "vision", "image_size": 16, "patch_size": 4, "layers": 2, "hidden": 32, "heads": 4}
CONVNEXT = {"kind": "convnext.config:ConvNeXtConfig", "image_size": 16, "depths": [1, 1], "widths": [8, 16]}
RUNS: dict[str, dict[str, Any]] = {
    "classification": {
        "model": {**VIT, "classes": 3, "class_token": True, "registers": 1, "pool": "class"},
        "objective": {"kind": "classification", "label_smoothing": 0.1},
    },
    "masked_images": {
        "model": {**VIT, "head": "pixels"},
        "objective": {"kind": "masked_images", "mask_ratio": 0.5},
    },
    "convnext": {"model": {**CONVNEXT, "classes": 3}, "objective": {"kind": "classification"}},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_folders(folder / "in", ("cat", "dog", "yak"), 20)
    recipe = Recipe(shard_bytes=8192, block_documents=5)
    prepare(
        [str(folder / "in")], folder / "corpus", tokenizer="bytes", recipe=recipe, heldout=0.2, workers=1,
        progress=False,
    )  # fmt: skip
    return folder / "corpus"


@pytest.fixture(autouse=True)
def where_the_examples_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT / "docs/examples")


def written(folder: Path, corpus: Path, name: str, **sections: dict[str, Any]) -> Path:
    config: dict[str, Any] = {
        "name": "run",
        "run_dir": str(folder / "run"),
        "data": {
            "sources": [{"path": str(corpus / "train")}],
            "heldout": [{"path": str(corpus / "heldout"), "name": "held"}],
            "seq_len": 1,
            "packing": "one",
            "image_size": 16,
            "augment": {"crop_scale": 0.5, "flip": 0.5},
            "ledger": True,
        },
        "optim": {"lr": 1.0e-3},
        "train": {"steps": 12, "global_batch": 8, "micro_batch": 2, "eval_every": 6},
        "checkpoint": {"every": 4, "keep": 10},
        **RUNS[name],
    }
    for section, values in sections.items():
        config[section] = config.get(section, {}) | values
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "convnext" else pytest.mark.slow) for n in RUNS]
)
def test_killed_and_run_again_is_bit_identical(name: str, corpus: Path, tmp_path: Path) -> None:
    """The second start is given the run folder, which holds the model's kind."""
    config = written(tmp_path / "killed", corpus, name)
    command = [sys.executable, "-P", str(KILLER), "step", "7", str(config)]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    killed, undisturbed = tmp_path / "killed/run", tmp_path / "undisturbed/run"
    assert train_here(killed)
    assert train_here(written(tmp_path / "undisturbed", corpus, name))
    for file in ("metrics.jsonl", "ledger.jsonl"):
        assert records(killed / file) == records(undisturbed / file)
    found, expected = tensors(killed), tensors(undisturbed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    (held,) = (line["eval"]["held"] for line in records(killed / "metrics.jsonl")[-1:])
    assert held.keys() == {"loss"} if name == "masked_images" else {"loss", "top_1", "f1"}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["parallel.tp=2", "parallel.pp=2", "parallel.zero=3", "parallel.cp=2"])
@pytest.mark.parametrize("name", RUNS)
def test_verify_finds_nothing(name: str, parallel: str, corpus: Path, tmp_path: Path) -> None:
    config = written(tmp_path, corpus, name)
    done = germinal("verify", config, "--nproc", 2, "--steps", 3, parallel, cwd=ROOT / "docs/examples")
    refused = {"convnext": ("tp", "cp"), "classification": ("cp",)}.get(name, ())
    if parallel.partition(".")[2][:2] in refused:
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    else:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.parametrize(("name", "sections", "message"), [
    ("classification", {"data": {"image_size": 32}}, "data.image_size=32: the model's pictures have 16"),
    ("masked_images", {"data": {"image_views": 2}}, "data.image_views=2: the objective takes 1 of each"),
    ("classification", {"model": {"classes": 2}}, "model.classes=2: the corpus has 3 of them: raise it"),
    ("convnext", {"model": {"classes": 2}}, "model.classes=2: the corpus has 3 of them: raise it"),
    ("classification", {"model": {"head": "pixels"}}, "model.head=pixels: this objective"),
    ("convnext", {"objective": {"kind": "masked_images"}}, "needs a model that offers pixels"),
    ("convnext", {"objective": {"kind": "causal_lm"}}, "needs a model that offers next"),
    ("convnext", {"model": {"depths": [1]}}, "model.depths=[1], model.widths=[8, 16]: not equally"),
    ("convnext", {"model": {"widths": [8, 0]}}, "model.widths=[8, 0]: must be at least 1"),
    ("convnext", {"model": {"depth": 2}}, "model.depth=2: unknown key; did you mean model.depths?"),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(
    name: str, sections: dict[str, Any], message: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        check_job(Job(str(written(tmp_path, corpus, name, **sections)), (), 1))
    assert "\n" not in str(refused.value)
