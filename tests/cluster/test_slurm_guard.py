"""A job with a spare node loses the node on which its batch step runs: nobody is left there to see it."""

from pathlib import Path

import pytest

from slurm import Slurm
from slurm_runs import SMALL, assert_undisturbed, submit
from whole_runs import make_corpus, train, write_config

pytestmark = pytest.mark.cluster


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
