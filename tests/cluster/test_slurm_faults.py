"""A run over two nodes of a real SLURM, disturbed: it ends with the metrics of the undisturbed run."""

import json
import os
import signal
from pathlib import Path

import pytest

from common.lock import FolderLock
from slurm import Slurm
from slurm_runs import SMALL, TWO_NODES, assert_undisturbed, germinal, sent, submit
from whole_runs import events, make_corpus, train, write_config

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    return write_config(folder, make_corpus(folder), **SMALL)


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    """The run folder of the same run on one machine."""
    folder = config.parent / "undisturbed"
    train(config, f"run_dir={folder}", nproc=4)
    return folder


def test_a_submitted_run_over_two_nodes_is_the_run_of_one_machine(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = submit(slurm, config, tmp_path / "run", options=("--code", "copy"))
    assert run.wait_for_end()["code"] == 0
    assert slurm.wait_for_job(run.job, "COMPLETED")["Restarts"] == "0"
    assert run.notes("start")[0]["nodes"] == ["n1", "n2"]
    assert_undisturbed(run.folder, undisturbed)
    logs = sorted(path.name for path in (run.folder / "logs").iterdir())
    assert logs[0] == "rank-00000.log"
    assert "step 40/40" in (run.folder / "logs" / logs[0]).read_text()


def test_scancel_saves_and_is_not_requeued_and_the_run_goes_on_when_it_is_submitted_again(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = submit(slurm, config, tmp_path / "run")
    run.wait_for_step(5)
    slurm.run("scancel", run.job)
    ending = run.wait_for_end(seconds=60)
    assert ending["code"] == 75 and str(ending["reason"]).startswith("cancelled by scancel")
    job = slurm.wait_for_job(run.job, "CANCELLED", seconds=60)
    status = json.loads(germinal(slurm, "status", run.folder, "--json").stdout)
    assert status["state"] == "cancelled", "the word of `germinal cancel`"
    assert job["Restarts"] == "0"
    (saved,) = run.notes("end")
    assert int(str(saved["step"])) >= 5
    again = submit(slurm, config, run.folder, submission=2)
    assert again.wait_for_end()["code"] == 0
    assert f"resume at step {saved['step']}" in again.log()
    assert_undisturbed(run.folder, undisturbed)


def test_scontrol_requeue_saves_and_goes_on(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = submit(slurm, config, tmp_path / "run")
    run.wait_for_step(5)
    slurm.run("scontrol", "requeue", run.job)
    assert run.wait_for_end()["code"] == 0
    assert slurm.job(run.job)["Restarts"] == "1"
    first, _ = run.notes("end")
    assert first["code"] == 75 and f"resume at step {first['step']}" in run.log()
    assert_undisturbed(run.folder, undisturbed)


def test_a_killed_rank_is_named_in_one_line_and_started_again_in_the_allocation(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = submit(slurm, config, tmp_path / "run")
    run.wait_for_step(12)
    (rank,) = slurm.tasks("n2", SLURM_JOB_ID=run.job, SLURM_PROCID=3)
    os.kill(rank, signal.SIGKILL)
    assert run.wait_for_end()["code"] == 0
    assert slurm.job(run.job)["Restarts"] == "0"
    assert run.log().count("rank 3 on n2 is gone without a word") == 1
    (restart,) = run.notes("restart")
    assert str(restart["reason"]).startswith("rank 3 on n2 was ended by SIGKILL at step ")
    assert restart["step"] in (10, 20, 30)
    (event,) = events(run.folder, "restart")
    assert (event["rank"], event["host"], event["reason"]) == (3, "n2", restart["reason"])
    assert_undisturbed(run.folder, undisturbed)


def test_a_lost_node_is_replaced_by_a_spare_one_or_else_the_job_is_requeued(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    spare = ("--spare-nodes", 1, "--partition", "three")
    long = "train.steps=120"  # neither may end before both have begun
    with_spare = submit(slurm, config, tmp_path / "with", long, options=spare)
    without = submit(slurm, config, tmp_path / "without", long)
    for run in (with_spare, without):
        run.wait_for_step(12)
        assert run.notes("start")[0]["nodes"] == ["n1", "n2"]
    slurm.lose("n2")
    with_spare.wait_for_note("restart")
    (restart,) = with_spare.notes("restart")
    assert "rank 2 on n2 was lost with its machine" in str(restart["reason"])
    without.wait_for_note("requeue")
    assert "put the job back into the queue" in str(without.notes("requeue")[0]["reason"])
    slurm.bring_back("n2")
    whole = tmp_path / "undisturbed"
    train(config, f"run_dir={whole}", long, nproc=4, timeout=600)
    assert with_spare.wait_for_end()["code"] == 0
    assert with_spare.notes("start")[1]["nodes"] == ["n1", "n3"]
    assert slurm.job(with_spare.job)["Restarts"] == "0"
    assert without.wait_for_end()["code"] == 0
    assert int(slurm.job(without.job)["Restarts"]) >= 1
    for run in (with_spare, without):
        assert_undisturbed(run.folder, whole, steps=120)


def test_nodes_whose_names_do_not_resolve(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = submit(slurm, config, tmp_path / "run", options=("--partition", "nameless"))
    assert run.wait_for_end()["code"] == 0
    assert run.notes("start")[0]["nodes"] == ["u1", "u2"]
    assert_undisturbed(run.folder, undisturbed)


def test_an_array_is_two_runs_at_once_which_do_not_meet(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    train(config, f"run_dir={other}", "seed=1", nproc=4)
    array = ("--array", "seed=0,1", *TWO_NODES)
    said = germinal(slurm, "submit", config, f"run_dir={tmp_path / 'run'}", *array)
    assert said.returncode == 0, said.stderr
    runs = [sent(slurm, tmp_path / f"run-seed{seed}") for seed in (0, 1)]
    assert [run.wait_for_end()["code"] for run in runs] == [0, 0]
    started, ended = ([float(str(run.notes(kind)[0]["time"])) for run in runs] for kind in ("start", "end"))
    assert max(started) < min(ended)
    for run, reference in zip(runs, (undisturbed, other)):
        assert_undisturbed(run.folder, reference)


def test_a_run_that_another_process_holds_for_a_while_is_started_again(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """As after the loss of a node, until the file server notices."""
    run = submit(slurm, config, tmp_path / "run")
    lock = FolderLock.take(run.folder)
    run.wait_for_note("restart")
    assert run.notes("end")[0]["code"] == 75, run.log()
    lock.release()
    assert run.wait_for_end()["code"] == 0
    assert slurm.job(run.job)["Restarts"] == "0"
    assert_undisturbed(run.folder, undisturbed)
