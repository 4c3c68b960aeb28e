"""Commands that begin work: what is checked before, and the right process started."""

import sys
from pathlib import Path

import pytest

from launch import cli
from launch.checks import check_job
from launch.job import ONE_PROCESS, Job, ProcessCommand
from launch.local import run
from whole_runs import failure


def test_a_damaged_corpus_is_a_failure_not_a_mistake(
    capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path
) -> None:
    (tmp_path / "corpus/manifest.json").write_text("{")
    code, message = failure(capfd, "train", config)
    assert code == 1
    assert "is damaged" in message


def test_generate_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[ProcessCommand] = []
    monkeypatch.setattr(run, "become", started.append)
    (tmp_path / "checkpoints").mkdir()
    cli.main(["generate", str(tmp_path), "--prompt=-x y", "--top-p", "0.5"])
    options = (
        "--prompt=-x y",
        "--max-tokens=200",
        "--temperature=0.8",
        "--top-p=0.5",
        "--seed=0",
        "--batch=8",
    )
    assert started == [
        ProcessCommand(
            (
                sys.executable,
                "-P",
                "-m",
                "trainer.process.entry",
                "trainer.generate.command",
                str(tmp_path),
                *options,
            )
        )
    ]


def test_verify_records_in_one_process_and_compares_on_the_layout(
    monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(run, "run_as_children", lambda job: jobs.append(job) or 0)
    assert cli.main(["verify", config, "parallel.tp=2", "--nproc", "4", "--steps", "3", "--json"]) == 0
    assert [(job.module, job.nproc) for job in jobs] == [
        ("trainer.verify.command", 1),
        ("trainer.verify.command", 4),
    ]
    record, compare = (job.options for job in jobs)
    assert record == ("--steps=3", "--json", "record", compare[-1])
    assert compare[:3] == ("--steps=3", "--json", "compare")
    assert jobs[0].overrides[: 1 + len(ONE_PROCESS)] == ("parallel.tp=2", *ONE_PROCESS)
    assert "parallel.engine=torch" in jobs[0].overrides
    assert jobs[1].overrides == ("parallel.tp=2",)


def test_verify_stops_where_the_reference_fails(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    codes = [1]
    monkeypatch.setattr(run, "run_as_children", lambda job: codes.pop())
    assert cli.main(["verify", config, "--nproc", "2"]) == 1


def test_verify_refuses_fp8_and_its_reference_offloads_nothing(
    capfd: pytest.CaptureFixture[str], config: str
) -> None:
    code, err = failure(capfd, "verify", config, "train.precision=bf16", "train.fp8=rowwise")
    assert code == 2 and "train.fp8=rowwise" in err and "train.fp8=none" in err
    code, err = failure(capfd, "train", config, "parallel.offload_optimizer=cpu")
    assert code == 2 and "parallel.offload_optimizer=cpu" in err and "deepspeed" in err
    offloading = ("parallel.engine=deepspeed", "parallel.offload_optimizer=cpu")
    check_job(Job(config, offloading).reference())


def test_debug_hands_its_options_on_zeros_too(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(run, "debug", lambda job: jobs.append(job) or 0)
    words = ["--debug", "--nproc", "2", "--step", "0", "--rows", "0", "--debug-rank", "0", "--overfit"]
    assert cli.main(["train", config, *words]) == 0
    assert cli.main(["train", config, "--debug", "parallel.tp=2"]) == 0
    several, single = jobs
    assert (several.module, several.nproc, several.overrides) == ("trainer.debug.command", 2, ())
    assert several.options == ("--step=0", "--overfit", "--rows=0", "--debug-rank=0")
    assert (single.nproc, single.overrides, single.options) == (1, ("parallel.tp=2", *ONE_PROCESS), ())
