"""Ends that are not the user's: a preemption that cancels; the loss of a node where nothing is requeued."""

from pathlib import Path

import pytest

from slurm import Slurm
from slurm_runs import SMALL, SlurmRun, assert_undisturbed, submit
from whole_runs import make_corpus, train, write_config

pytestmark = pytest.mark.cluster


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
