"""Ways to start ranks with a real SLURM: each trains on all of them, or is refused in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm import Slurm
from slurm_runs import SMALL, assert_undisturbed, own_environment
from whole_runs import GERMINAL, events, make_corpus, records, train, whole_steps, write_config

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    return write_config(folder, make_corpus(folder), **{**SMALL, "train__steps": 20})


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    folder = config.parent / "undisturbed"
    train(config, f"run_dir={folder}", nproc=4)
    return folder


def run(slurm: Slurm, *words: object, timeout: float = 120.0) -> "subprocess.CompletedProcess[str]":
    return slurm.run(*words, check=False, env=own_environment(), timeout=timeout)


def error_of(said: "subprocess.CompletedProcess[str]") -> str:
    """The one line of a command that is refused."""
    assert said.returncode == 2, said.stderr
    lines = [line for line in said.stderr.splitlines() if "error: " in line and "srun:" not in line]
    assert len(lines) == 1, said.stderr
    return lines[0]


def test_srun_starts_ranks_on_two_nodes_whose_names_resolve_or_not(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Two steps at once on each pair of nodes: none meets the ranks of another."""
    steps = {}
    for partition in ("tiny", "nameless"):
        folder = tmp_path / partition
        command = ["srun", f"--partition={partition}", "--nodes=2", "--ntasks=4", GERMINAL, "rank", config]
        steps[folder] = subprocess.Popen(
            [*map(str, command), f"run_dir={folder}"],
            env={**slurm.env, **own_environment(), "SLURM_CONF": slurm.env["SLURM_CONF"]},
            stderr=subprocess.PIPE,
            text=True,
            cwd=slurm.folder,
        )
    for folder, step in steps.items():
        said = step.communicate(timeout=180)[1]
        assert step.returncode == 0, said
        assert_undisturbed(folder, undisturbed, steps=20)


def test_two_steps_of_one_job_and_the_first_of_the_next_do_not_meet(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Ports were made of 7 · job + step: step 7 of a job had that of step 0 of the next job."""
    ranks = f"--overlap --nodes=1 --nodelist=n1 --ntasks=2 {GERMINAL} rank {config} parallel.dp_shard=1"
    seventh = "for i in 1 2 3 4 5 6 7; do srun --nodes=1 --ntasks=1 true; done; touch {folder}/ready; "
    seventh += "until [ -e {folder}/go ]; do sleep 0.1; done; "
    seventh += f"srun {ranks} run_dir={{folder}}/seventh"
    options = ("--nodes=1", "--nodelist=n1", "--ntasks=2")
    env = own_environment()
    one = slurm.sbatch(
        *options, f"--output={tmp_path}/one.txt", script=seventh.format(folder=tmp_path), env=env
    )
    first = f"touch {tmp_path}/go; srun {ranks} run_dir={tmp_path}/first"
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    two = slurm.sbatch(*options, f"--output={tmp_path}/two.txt", script=first, env=env)
    assert two == one + 1
    for job in (one, two):
        slurm.wait_for_job(job, "COMPLETED", seconds=120)
    for folder in ("seventh", "first"):
        metrics = records(tmp_path / folder / "metrics.jsonl")
        assert [line["step"] for line in metrics if "loss" in line] == list(range(1, 21))
        assert events(tmp_path / folder, "start")[0]["ranks"] == 2


def test_a_rank_killed_on_another_node_is_named_in_one_line_and_in_the_event(
    slurm: Slurm, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = slurm.sbatch(
        *("--nodes=2", "--ntasks=4", f"--output={tmp_path / 'out.txt'}"),
        script=f"srun {GERMINAL} rank {config} run_dir={folder} train.steps=100000",
        env=own_environment(),
    )
    deadline = time.monotonic() + 120
    while whole_steps(folder / "metrics.jsonl") < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    (rank,) = slurm.tasks("n2", SLURM_JOB_ID=job, SLURM_PROCID=3)
    os.kill(rank, signal.SIGKILL)
    slurm.wait_for_job(job, "FAILED", seconds=60)
    errors = [line for line in (tmp_path / "out.txt").read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: rank 3 on n2 is gone without a word"), errors
    assert [(event["rank"], event["host"]) for event in events(folder, "fault")] == [(3, "n2")]


def test_germinal_train_in_every_task_of_a_step_is_refused(
    slurm: Slurm, config: Path, tmp_path: Path
) -> None:
    step = ("srun", "--nodes=2", "--ntasks-per-node=1")
    said = run(slurm, *step, GERMINAL, "train", config, "--nproc", 2, f"run_dir={tmp_path / 'run'}")
    assert said.returncode == 2, said.stderr
    assert "germinal rank" in said.stderr
    assert not (tmp_path / "run").exists()


def test_a_rank_that_no_step_started_is_refused_in_an_allocation_of_several(
    slurm: Slurm, config: Path, tmp_path: Path
) -> None:
    """Before: it hung, or trained alone without a word. The shell that salloc gives is such a step."""
    salloc = ("salloc", "--quiet", "--nodes=2", "--ntasks=4")
    shell = ("srun", "--interactive", "--preserve-env", "--nodes=1", "--ntasks=1")
    rank = (sys.executable, "-P", "-m", "trainer", config, f"run_dir={tmp_path / 'run'}")
    for start in ((*salloc,), (*salloc, *shell)):
        message = error_of(run(slurm, *start, *rank, timeout=60))
        assert "srun" in message
    assert not (tmp_path / "run").exists()


def test_each_task_gets_its_gpus_and_cpus(slurm: Slurm, tmp_path: Path) -> None:
    """The GPUs are device files that are none: what SLURM tells a task is real, and what ranks make of it."""
    ask = (
        "import os; from parallel.world.device import gpu_index; from parallel.world.launcher import "
        "cpus_per_task, identity; seen = os.environ['CUDA_VISIBLE_DEVICES'].split(','); "
        "rank, world, local = identity(os.environ); "
        "print(rank, seen[gpu_index(os.environ, local, len(seen))], cpus_per_task(os.environ))"
    )

    def ranks(*options: str) -> list[str]:
        step = ("srun", "--nodes=1", "--nodelist=n1", "--ntasks=2", *options)
        said = run(slurm, *step, sys.executable, "-P", "-c", ask)
        assert said.returncode == 0, said.stderr
        return sorted(said.stdout.splitlines())

    assert ranks("--gpus-per-task=1", "--cpus-per-task=1") == ["0 0 1", "1 1 1"]
    assert ranks("--gpus-per-node=2", "--cpus-per-task=2") == ["0 0 2", "1 1 2"]
    assert ranks("--gpus-per-node=2") == ["0 0 0", "1 1 0"]
