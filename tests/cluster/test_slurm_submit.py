"""`germinal submit|status|logs|cancel` with a real SLURM: what reaches the job, and what the queue says of
it.

In most tests the job's interpreter is a script that notes what it was given and waits: how a run trains in a
job is in test_slurm_faults.py.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.corpus.manifest import Manifest, TokenizerEntry, write_manifest
from launch.cluster import submission
from slurm import Slurm
from slurm_runs import SMALL, assert_undisturbed, sent, submit
from whole_runs import make_corpus, train, write_config

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
HOSTILE = """$(touch pwned) `touch pwned`; touch pwned "a" 'b' %j %% é"""
CONFIG = """
name: tiny
model: {layers: 2, hidden: 64, heads: 4, vocab: 512}
data: {sources: [{path: corpus}], seq_len: 64}
train: {steps: 4, global_batch: 8, micro_batch: 2}
"""
PYTHON = """#!/bin/bash
printf '%s\\0' "$@" "$PYTHONPATH" "$PWD" > started.tmp && mv started.tmp started
until [ -e over ]; do sleep 0.2; done
"""
# Notes what a rank is given, and becomes the rank.
APPTAINER = """#!/bin/bash
printf '%s\\0' "$VALUE" "$@" > "${0%/*}/rank-$SLURM_PROCID"
until [ "$1" = "$INSIDE" ]; do shift; done
exec "$@"
"""

Germinal = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with a name that a shell would take for a command."""
    folder = tmp_path / HOSTILE
    (folder / "corpus").mkdir(parents=True)
    write_manifest(
        folder / "corpus", Manifest(TokenizerEntry("tokenizer.json", "0" * 64, 300, 0), "uint16", 64, ())
    )
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return folder


@pytest.fixture
def germinal(slurm: Slurm, place: Path) -> Germinal:
    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-P", "-m", "launch.cli", *words]
        env = {**slurm.env, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=120)

    return run


def send(germinal: Germinal, place: Path, *words: str) -> None:
    done = germinal("submit", "tiny.yaml", f"--python={place / 'python'}", "--partition=tiny", *words)
    assert done.returncode == 0, done.stderr


def state(germinal: Germinal, run: str = "tiny") -> dict:
    return json.loads(germinal("status", run, "--json").stdout)


def wait_for(reached: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def test_values_reach_a_real_job_as_they_are(slurm: Slurm, place: Path, germinal: Germinal) -> None:
    send(germinal, place, "--nodes=2", f"--sbatch=comment={HOSTILE}", f"--env=VALUE={HOSTILE}", "--time=10")
    wait_for((place / "started").exists, "the job has not begun")
    folder = place / "runs/tiny/submit/1"
    expected = ["-P", "-m", "launch.cluster.batch", str(folder), f"{folder}/code:{ROOT}", str(place), ""]
    assert (place / "started").read_text().split("\0") == expected
    (job,) = [sent.job for sent in submission.jobs(folder)]
    shown = slurm.run("scontrol", "show", "job", job).stdout
    assert f"Comment={HOSTILE}" in shown and "TimeLimit=00:10:00" in shown and "NumNodes=2" in shown
    assert submission.read(folder).cluster.env == {"VALUE": HOSTILE}
    wait_for(lambda: state(germinal)["state"] == "running", "status does not show it running")
    assert state(germinal, job)["jobs"] == [job]

    refused = germinal("submit", "tiny.yaml")
    assert refused.returncode == 75 and f"job {job} of this run is RUNNING" in refused.stderr
    (place / "over").touch()
    wait_for(lambda: not state(germinal)["jobs"], "the job has not ended")
    assert (folder / f"log-{job}.txt").is_file()
    assert not list(place.parent.rglob("pwned*"))


def test_values_reach_the_ranks_as_they_are_also_in_a_job_without_the_environment(
    slurm: Slurm, place: Path, germinal: Germinal
) -> None:
    """The ranks train, each started by a program in apptainer's place, which notes what it is given."""
    (place / "bin").mkdir()
    (place / "texts").mkdir()
    (place / "bin/apptainer").write_text(APPTAINER)
    (place / "bin/apptainer").chmod(0o755)
    changes = {"train__steps": 4, "parallel__dp_shard": 2, "track__notes": HOSTILE}
    config = write_config(place, make_corpus(place / "texts"), **changes)
    container = {"image": HOSTILE, "python": sys.executable, "mounts": [HOSTILE]}
    (place / "site.yaml").write_text(json.dumps({"container": container}))
    variables = {"VALUE": HOSTILE, "INSIDE": sys.executable, "PATH": f"{place}/bin:{os.environ['PATH']}"}
    done = germinal(
        *("submit", str(config), "--cluster=site.yaml", "--nodes=2", "--nproc=1", "--partition=tiny"),
        *("--sbatch=export=NONE", *(f"--env={name}={value}" for name, value in variables.items())),
    )
    assert done.returncode == 0, done.stderr
    run = sent(slurm, place / "run")
    assert run.wait_for_end()["code"] == 0, run.log()
    assert run.notes("start")[0]["nodes"] == ["n1", "n2"]
    folder = place / "run/submit/1"
    binds = [f"--bind={path}:{path}" for path in (place, place / "run", folder / "code")]
    rank = [sys.executable, "-P", "-m", "launch.cli", "rank", str(folder / "config.yaml")]
    expected = [HOSTILE, "exec", f"--pwd={place}", *binds, f"--bind={HOSTILE}", HOSTILE, *rank, ""]
    for number in range(2):
        assert (place / f"bin/rank-{number}").read_text().split("\0") == expected
    assert not list(place.parent.rglob("pwned*"))


def test_a_chain_waits_in_line_and_is_cancelled_as_one(slurm: Slurm, place: Path, germinal: Germinal) -> None:
    send(germinal, place, "--chain=3", "--time=10")
    wait_for(lambda: state(germinal)["state"] == "running", "the first job does not run")
    found = state(germinal)
    assert len(found["jobs"]) == 3
    words = [slurm.state(job) for job in found["jobs"]]
    assert words == ["RUNNING", "PENDING", "PENDING"]
    assert (
        "Dependency=afterany:" + found["jobs"][1]
        in slurm.run("scontrol", "show", "job", found["jobs"][2]).stdout
    )
    done = germinal("cancel", "tiny", "--now")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not state(germinal)["jobs"], "jobs are left")
    assert state(germinal)["state"] == "cancelled"


def test_what_this_cluster_has_not_is_refused_here(slurm: Slurm, germinal: Germinal) -> None:
    for words, says in (
        (("--partition=no",), "partition=no: there is no such partition: known: "),
        (("--partition=tiny", "--nodes=5"), "nodes=5: the partition tiny has 2"),
    ):
        done = germinal("submit", "tiny.yaml", *words)
        assert done.returncode == 2 and says in done.stderr
    done = germinal("submit", "tiny.yaml", "--sbatch=reservation=none")
    assert done.returncode == 1 and "error: sbatch refused the job: " in done.stderr
    assert "reservation" in done.stderr.lower()


def test_each_element_of_an_array_is_a_job_that_is_shown_by_its_name(
    slurm: Slurm, place: Path, germinal: Germinal
) -> None:
    send(germinal, place, "--array=seed=1,2", "--at-once=1", "--time=10")
    wait_for(lambda: state(germinal, "tiny-seed1")["state"] == "running", "the first does not run")
    second = state(germinal, "tiny-seed2")
    assert second["state"] == "queued" and "Dependency" in second["reason"]
    (place / "over").touch()
    wait_for(lambda: not state(germinal, "tiny-seed2")["jobs"], "the second has not run")
    assert list((place / "runs/tiny-seed2/submit/1").glob("log-*.txt"))


def test_a_job_that_lost_its_batch_step_is_requeued_by_a_guard(slurm: Slurm, tmp_path: Path) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path), **SMALL)
    run = submit(slurm, config, tmp_path / "run", options=("--spare-nodes", 1, "--partition", "three"))
    run.wait_for_step(12)
    assert slurm.job(run.job)["BatchHost"] == "n1"
    slurm.lose("n1")
    run.wait_for_note("requeue")
    (requeue,) = run.notes("requeue")
    assert requeue["reason"] == "n1, on which the batch step ran, was lost: requeued"
    slurm.bring_back("n1")
    assert run.wait_for_end()["code"] == 0
    assert int(slurm.job(run.job)["Restarts"]) == 1
    train(config, f"run_dir={tmp_path / 'undisturbed'}", nproc=4)
    assert_undisturbed(run.folder, tmp_path / "undisturbed")
