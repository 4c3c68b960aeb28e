"""The SLURM of these tests is a real one: nodes that are lost and come back, names that resolve or do not."""

import pytest

from processes import until
from slurm import Slurm

pytestmark = pytest.mark.cluster


def test_a_step_runs_on_both_nodes(slurm: Slurm) -> None:
    said = slurm.run("srun", "-N2", "-l", "sh", "-c", "hostname; getent hosts n1 n2 || echo unknown").stdout
    assert sorted(said.splitlines()) == [
        "0: 127.0.0.1       n1 n2 n3",
        "0: 127.0.0.1       n1 n2 n3",
        "0: n1",
        "1: 127.0.0.1       n1 n2 n3",
        "1: 127.0.0.1       n1 n2 n3",
        "1: n2",
    ]
    said = slurm.run(
        "srun", "-N2", "-p", "nameless", "-l", "sh", "-c", "getent hosts u1 u2 || hostname"
    ).stdout
    assert sorted(said.splitlines()) == ["0: u1", "1: u2"]


def test_a_lost_node_is_down_and_comes_back(slurm: Slurm) -> None:
    job = slurm.sbatch("-N2", "--requeue", script="srun sleep 300")
    slurm.wait_for_job(job, "RUNNING")
    until(lambda: slurm.tasks("n2", SLURM_JOB_ID=job), what="the job's step on n2")
    slurm.lose("n2")
    slurm.wait_for_job(job, "PENDING", seconds=60)
    slurm.bring_back("n2")
    slurm.wait_for_job(job, "RUNNING", seconds=60)
