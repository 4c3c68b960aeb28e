"""`germinal rank`: one rank of this installation, whatever lies in the working directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cli
from launch.checks import check_alone
from launch.local import run
from launch.local.rank_commands import KEEP_MEMORY
from whole_runs import GERMINAL, environment

SRUN = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    "words",
    [
        ["rank", "c.yaml", "seed=1"],
        ["--local_rank=3", "rank", "c.yaml", "seed=1"],  # deepspeed --no_python
        ["rank", "--local-rank=3", "c.yaml", "seed=1"],
        ["rank", "--local_rank", "3", "c.yaml", "seed=1"],
    ],
)
def test_it_becomes_a_rank_of_this_installation(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    became = []
    monkeypatch.setattr(os, "execve", lambda *command: became.append(command))
    monkeypatch.setattr(run, "hold", lambda: None)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "5")
    cli.main(words)
    ((program, argv, env),) = became
    assert (program, argv) == (sys.executable, (sys.executable, "-P", "-m", "trainer", "c.yaml", "seed=1"))
    assert {name: env[name] for name in KEEP_MEMORY} == KEEP_MEMORY | {"MALLOC_TOP_PAD_": "5"}


def test_nothing_in_the_working_directory_shadows_it_and_its_exit_code_is_the_ranks(tmp_path: Path) -> None:
    for package in ("trainer", "data", "launch", "parallel", "common"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(
            "raise SystemExit('the user has a folder of this name')"
        )
    done = subprocess.run(
        [GERMINAL, "rank", "nowhere.yaml"], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "error: config nowhere.yaml: no such file\n")


@pytest.mark.parametrize("command", ["train", "verify"])
def test_a_command_that_srun_starts_twice_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    assert cli.main([command, "c.yaml", "--nproc", "2"]) == 2
    said = capfd.readouterr().err
    assert said.startswith(
        "error: srun has started 2 of this command, and each would start a run of its own: "
    )
    assert said.count("\n") == 1 and "`srun germinal rank CONFIG" in said


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SRUN | {"SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_NNODES": "2"},  # a batch script's first node
        {"RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_a_command_that_is_started_once_is_not(environ: dict[str, str]) -> None:
    check_alone(environ)
