"""torchrun as the task of srun: the batch script of docs/cluster.md saves and requeues."""

import re
from pathlib import Path

import pytest

from host_runs import assert_undisturbed, undisturbed, write_run
from processes import until
from slurm import Slurm
from whole_runs import environment, events, meeting_place, whole_steps

pytestmark = pytest.mark.cluster
DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"


def documented_script() -> str:
    return re.search(r"```\n(#SBATCH --requeue.*?)```", DOCS.read_text(), re.DOTALL)[1]  # type: ignore[index]


def test_a_warning_before_the_time_limit_saves_and_requeues(slurm: Slurm, tmp_path: Path) -> None:
    steps = {"train__steps": 400, "checkpoint__every": 0, "checkpoint__keep": 10}
    config = write_run(tmp_path, **steps)
    expected = undisturbed(config)
    port = meeting_place()["MASTER_PORT"]
    meeting = f"--rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:{port} --rdzv-id=$SLURM_JOB_ID"
    script = documented_script().replace("CONFIG", str(config))
    script = script.replace("…", f"--nnodes=2 --nproc-per-node=1 {meeting}")
    job = slurm.sbatch(
        "-N2", "--ntasks-per-node=1", f"--output={tmp_path}/out", script=script, env=environment()
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: whole_steps(metrics) > 15, what="step 15")
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    ended = slurm.wait_for_job(job, "COMPLETED", "FAILED", seconds=180)
    said = (tmp_path / "out").read_text()
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1", said
    assert said.count("saved at step") == 1, said
    first, second = events(tmp_path / "run", "start")
    assert second["step"] > 15, (first, second)
    assert_undisturbed(tmp_path / "run", expected)
