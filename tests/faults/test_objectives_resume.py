"""Laws 1, 5 and 6 for a whole run of each objective: killed and run again, verified, refused in one line."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.checks import check_job
from launch.job import Job
from whole_runs import (
    environment,
    germinal,
    make_corpus,
    records,
    tensors,
    train_here,
    write_config,
)

KILLER = Path(__file__).parents[1] / "helpers/programs/killer.py"

ENCODER = {"kind": "encoder", "layers": 2, "hidden": 32, "heads": 4, "vocab": 288, "window": 6}
# name → what a config has besides `whole_runs.write_config`'s.
RUNS: dict[str, dict[str, Any]] = {
    "span_corruption": {"objective__kind": "span_corruption", "objective__z_loss": 1e-3},
    "fill_in_the_middle": {"objective__kind": "fill_in_the_middle", "data__document_mask": True},
    "causal_lm": {"objective__z_loss": 1e-3, "objective__label_smoothing": 0.1},
    "masked_lm": {"objective__kind": "masked_lm", "objective__whole_words": True, "model": ENCODER},
    "next_sentence": {
        "objective__kind": "masked_lm",
        "objective__next_sentence": True,
        "model": {**ENCODER, "next_sentence": True, "norm_place": "post", "positions": "learned"},
        "data__packing": "one",
        "data__partners": True,
    },
    "clip": {
        "model": {
            "kind": "text_pair",
            "layers": 4,
            "hidden": 32,
            "heads": 4,
            "vocab": 288,
            "window": 4,
            "embedding": 16,
            "learnt": "scale",
        },
        "objective__kind": "clip",
        "data__packing": "views",
    },
}

ALWAYS = ("span_corruption",)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def kill(config: Path, before_step: int) -> None:
    """Run until the process kills itself before this step."""
    command = [sys.executable, str(KILLER), "step", str(before_step), str(config)]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in RUNS]
)
def test_killed_and_run_again_is_bit_identical(name: str, corpus: Path, tmp_path: Path) -> None:
    folders = []
    for end in ("killed", "undisturbed"):
        (tmp_path / end).mkdir()
        config = write_config(tmp_path / end, corpus, **RUNS[name])
        if end == "killed":
            kill(config, before_step=7)
        assert train_here(config)
        folders.append(tmp_path / end / "run")
    for file in ("metrics.jsonl", "ledger.jsonl"):
        assert records(folders[0] / file) == records(folders[1] / file)
    killed, undisturbed = map(tensors, folders)
    assert killed.keys() == undisturbed.keys()
    assert all(torch.equal(killed[key], undisturbed[key]) for key in killed)
    (held,) = (line["eval"]["made_up"] for line in records(folders[0] / "metrics.jsonl")[-1:])
    assert ("bits_per_byte" in held) == (name == "causal_lm"), "of the text alone"


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["parallel.tp=2", "parallel.pp=2", "parallel.cp=2", "parallel.zero=3"])
@pytest.mark.parametrize("name", RUNS)
def test_verify_finds_nothing(name: str, parallel: str, corpus: Path, tmp_path: Path) -> None:
    groups = {} if "model" in RUNS[name] else {"model__kv_heads": 4}
    config = write_config(tmp_path, corpus, **groups, **RUNS[name])
    done = germinal("verify", config, "--nproc", 2, "--steps", 3, parallel)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "span_corruption",
        {"data__document_mask": True},
        "data.document_mask=true: objective.kind=span_corruption takes a row for one text: set it to false",
    ),
    (
        "span_corruption",
        {"model__vocab": 258},
        "adds 2: set model.vocab to at least 259",
    ),
    ("clip", {"objective__kind": "siglip"}, "objective.kind=siglip: needs model.learnt=scale_bias, and"),
    ("clip", {"data__packing": "cut"}, "data.packing=cut: objective.kind=clip compares the two halves"),
    (
        "clip",
        {"train__global_batch": 1, "train__micro_batch": 1},
        "train.global_batch=1: objective.kind=clip tells a row from the others of its global batch: set",
    ),
    (
        "span_corruption",
        {"data__packing": "views"},
        "data.packing=views: objective.kind=span_corruption takes",
    ),
    ("fill_in_the_middle", {"model__vocab": 257}, "adds 3: set model.vocab to at least 260"),
    ("span_corruption", {"objective__density": 1.0}, "objective.density=1: must be below 1"),
    ("causal_lm", {"objective__label_smoothing": 1.0}, "objective.label_smoothing=1: must be below 1"),
    (
        "span_corruption",
        {"model__positions": "learned", "model__max_positions": 32},
        "objective.kind=span_corruption makes rows of 40 tokens out of data.seq_len=32, and of such rows: ",
    ),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_what_does_not_go_together_is_refused_before_any_rank_starts(
    name: str,
    settings: dict[str, Any],
    message: str,
    corpus: Path,
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, corpus, **(RUNS[name] | settings))
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        check_job(Job(str(config), (), 1))
    assert "\n" not in str(refused.value)
