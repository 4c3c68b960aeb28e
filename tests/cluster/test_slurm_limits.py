"""Ends that are not the user's: the time limit of a real SLURM, a preemption that cancels, a lost node. The
state is saved, and a submitted run goes on, requeued or in the next link of a chain.
"""

import time
from pathlib import Path

import pytest

from processes import until
from slurm import Slurm
from slurm_runs import SMALL, SlurmRun, assert_undisturbed, germinal, own_environment, submit
from whole_runs import GERMINAL, events, make_corpus, train, whole_steps, write_config

pytestmark = pytest.mark.cluster

# A rate that does not depend on the number of steps, for nobody knows how many a minute has.
ENDLESS = {
    "train__steps": 100_000,
    "train__eval_every": 0,
    "optim__schedule": "wsd",
    "optim__decay_fraction": 0.0,
}


def test_at_the_time_limit_a_run_saves_and_a_submitted_one_goes_on_requeued_or_in_the_next_link(
    slurm: Slurm, tmp_path: Path
) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path), **{**SMALL, **ENDLESS})
    # SLURM looks at limits twice a minute, and sends this signal up to a minute before.
    soon = ("--time", 2, "--signal-seconds", 55)
    warned = submit(slurm, config, tmp_path / "warned", options=soon)
    bare = slurm.sbatch(
        *("--nodes=2", "--ntasks=4", "--time=1", f"--output={tmp_path / 'bare.txt'}"),
        script=f"srun --label {GERMINAL} rank {config} run_dir={tmp_path / 'bare'}",
        env=own_environment(),
    )
    slurm.wait_for_job(bare, "TIMEOUT", seconds=240)
    chain = submit(slurm, config, tmp_path / "chain", options=(*soon, "--chain", 9, "--no-requeue"))
    links = [str(chain.job + number) for number in range(9)]
    said = (tmp_path / "bare.txt").read_text()
    (stopped,) = events(tmp_path / "bare", "save")[-1:]
    last = whole_steps(tmp_path / "bare" / "metrics.jsonl")
    assert stopped["step"] == last > 0
    assert said.count(f"stopped: saved at step {last}: ") == 1
    assert "Exited with exit code 75" in said and "error: rank" not in said

    warned.wait_for_note("end")
    (first,) = warned.notes("end")
    assert first["code"] == 75 and int(str(first["step"])) > 0, warned.log()
    warned.wait_for_note("start", count=2)
    warned.wait_for_step(int(str(first["step"])) + 5)
    assert slurm.job(warned.job)["Restarts"] == "1"
    (requeued,) = events(warned.folder, "requeue")
    assert requeued["reason"].startswith("asked to save (time limit or preemption); saved at step ")
    cancelled = germinal(slurm, "cancel", warned.folder)
    assert cancelled.returncode == 0, cancelled.stderr
    ending = warned.wait_for_end(seconds=90)
    assert ending["code"] == 75 and str(ending["reason"]).startswith("cancelled; ")
    assert slurm.job(warned.job)["Restarts"] == "1"

    until(lambda: len(chain.notes("start")) > 1, seconds=240, what="the second link")
    assert str(chain.notes("stop")[0]["reason"]).endswith("; requeue is false: submit the run again")
    assert [note["job"] for note in chain.notes("start")][:2] == links[:2]
    aim = int(str(chain.notes("end")[0]["step"])) + 5
    until(lambda: whole_steps(chain.folder / "metrics.jsonl") >= aim, seconds=240, what=f"step {aim}")
    assert germinal(slurm, "cancel", chain.folder).returncode == 0
    over = ("", "FAILED", "CANCELLED", "COMPLETED")
    until(lambda: all(slurm.state(job) in over for job in links), seconds=120, what="the chain's end")

    steps = max(
        last, whole_steps(chain.folder / "metrics.jsonl"), whole_steps(warned.folder / "metrics.jsonl")
    )
    train(config, f"run_dir={tmp_path / 'undisturbed'}", f"train.steps={steps}", nproc=4, timeout=600)
    for folder in (warned.folder, chain.folder, tmp_path / "bare"):
        own = whole_steps(folder / "metrics.jsonl")
        assert_undisturbed(folder, tmp_path / "undisturbed", steps=own, evaluations=False)


def test_a_job_that_is_told_to_save_while_its_modules_load_is_requeued_and_runs(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASH_FUNC_module%%", "() { sleep 5; }")
    config = write_config(tmp_path, make_corpus(tmp_path), **{**SMALL, "train__steps": 4})
    run = submit(slurm, config, tmp_path / "run", options=("--modules", "slow"))
    slurm.wait_for_job(run.job, "RUNNING")
    time.sleep(1)  # bash itself has begun
    slurm.run("scancel", "--batch", "--signal=USR1", run.job)
    run.wait_for_note("requeue")
    assert not run.notes("start")
    assert run.wait_for_end()["code"] == 0
    assert slurm.job(run.job)["Restarts"] == "1"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    return write_config(folder, make_corpus(folder), **SMALL)


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    folder = config.parent / "undisturbed"
    train(config, f"run_dir={folder}", nproc=4)
    return folder


@pytest.mark.parametrize("grace_seconds", [0, 60])
def test_a_run_that_another_job_preempts_saves_and_goes_on_afterwards(
    grace_seconds: int, slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Before: without a grace time it was taken for a run that scancel ended, and with one, of which SLURM
    tells the ranks alone, for one that another job held.
    """
    slurm.run("scontrol", "update", "PartitionName=cheap", f"GraceTime={grace_seconds}")
    run = submit(slurm, config, tmp_path / "run", options=("--partition", "cheap"))
    run.wait_for_step(5)
    urgent = slurm.sbatch("--nodes=2", "--exclusive", "--partition=urgent", script="sleep 1")
    run.wait_for_note("requeue")
    (requeue,) = run.notes("requeue")
    (saved,) = run.notes("end")
    assert requeue["reason"] == f"preempted; saved at step {saved['step']}; requeued", run.log()
    slurm.wait_for_job(urgent, "COMPLETED")
    assert run.wait_for_end()["code"] == 0
    assert slurm.job(run.job)["Restarts"] == "1"
    assert_undisturbed(run.folder, undisturbed)


def test_the_next_link_of_a_chain_goes_on_where_a_node_is_lost(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Before: the loss was taken for scancel, and every later link ended at once."""
    run = submit(slurm, config, tmp_path / "run", options=("--chain", 2, "--no-requeue"))
    run.wait_for_step(12)
    slurm.lose("n2")
    run.wait_for_note("stop")
    (stop,) = run.notes("stop")
    assert str(stop["reason"]).endswith("; requeue is false: submit the run again"), run.log()
    slurm.bring_back("n2")
    second = SlurmRun(slurm, run.folder, run.job + 1)
    assert second.wait_for_end()["code"] == 0
    assert [note["job"] for note in run.notes("start")] == [str(run.job), str(second.job)]
    assert_undisturbed(run.folder, undisturbed)
