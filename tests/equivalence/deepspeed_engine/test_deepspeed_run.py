"""The real command on the second engine: the same run folder, gone on with by the first."""

import json
from pathlib import Path
from typing import Any

import pytest

import whole_runs

pytest.importorskip("deepspeed")


def curve(folder: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def run(folder: Path, corpus: Path, *overrides: str, nproc: int, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    # A rate that does not depend on where the run ends.
    config = whole_runs.write_config(folder, corpus, optim__schedule="constant", **changes)
    done = whole_runs.germinal("train", config, "--nproc", nproc, *overrides)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow  # test_deepspeed_state.py has the covering part
def test_a_run_changes_engines(tmp_path: Path) -> None:
    corpus = whole_runs.make_corpus(tmp_path)
    run(tmp_path / "torch", corpus, nproc=1)
    said = run(
        tmp_path / "both", corpus, "parallel.engine=deepspeed", "parallel.zero=3", "train.steps=8", nproc=2
    )
    assert "DeepSpeed" not in said and "Warning" not in said, said
    run(tmp_path / "both", corpus, "parallel.tp=2", nproc=2)
    expected, found = curve(tmp_path / "torch"), curve(tmp_path / "both")
    assert len(found) == len(expected) == 12
    for got, want in zip(found, expected, strict=True):
        assert got == pytest.approx(want, rel=1e-5)


def test_fp16_runs_on_a_cpu_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed asks oneDNN for fp16 while it starts, and without ZeRO in every reduction."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    small = {"train__steps": 2, "train__precision": "fp16", "parallel__engine": "deepspeed"}
    run(tmp_path, whole_runs.make_corpus(tmp_path), "parallel.zero=0", nproc=2, **small)
    assert len(curve(tmp_path)) == 2


def test_refusals_are_one_line_and_exit_2(tmp_path: Path) -> None:
    corpus = whole_runs.make_corpus(tmp_path)
    config = whole_runs.write_config(tmp_path, corpus, parallel__engine="deepspeed")
    for override, names in (
        ("optim.name=muon", "optim.name"),
        ("parallel.tp=2", "parallel.engine=deepspeed"),
    ):
        done = whole_runs.germinal("train", config, "--nproc", 2, override)
        assert done.returncode == 2
        assert names in done.stderr and done.stderr.count("\n") == 1, done.stderr
