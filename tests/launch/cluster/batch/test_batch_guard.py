"""The guards of a batch step: how many there are, and what they note."""

from pathlib import Path

import pytest

from launch.cluster import submission as records
from launch.cluster.batch import guard
from launch.cluster.batch.allocation import Allocation, JobState
from launch.cluster.batch.earlier_jobs import FRUITLESS_STARTS, fruitless
from launch.cluster.cluster import Cluster
from launch.cluster.submission import Note, Submission


def test_a_job_of_many_nodes_has_few_guards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks SLURM's controller every few seconds."""
    started: list[list[str]] = []

    class Step:
        def __init__(self, words: list[str], **_: object) -> None:
            started.append(words)

        def terminate(self) -> None: ...

        def wait(self, seconds: float) -> None: ...

    monkeypatch.setattr(guard.subprocess, "Popen", Step)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    cluster = Cluster(nodes=1000, nproc=8, spare_nodes=2)
    submission = Submission("tiny", *map(str, [tmp_path] * 3), "config.yaml", "python", "", cluster)
    with guard.guarded(submission, Allocation("7", 0, tuple(f"n{i}" for i in range(1, 1003)))):
        (words,) = started
    assert {"--nodes=3", "--ntasks=3", "--nodelist=n2,n3,n4", "--export=ALL"} <= set(words)


def test_a_job_that_a_guard_requeued_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first start is noted by the batch step that was lost."""
    monkeypatch.setattr(Allocation, "state", lambda self: JobState("RUNNING", "None", 0, "n[2-3]"))
    monkeypatch.setattr(Allocation, "requeue", lambda self: "")
    for job in range(FRUITLESS_STARTS):
        assert fruitless(list(records.notes(tmp_path)), 0) == ""
        records.note(tmp_path, Note(1.0, str(job), "start", attempt=1, step=0))
        assert guard.main(str(tmp_path), str(job), "n1") == 0
    assert "the last one: n1, on which the batch step ran, was lost" in fruitless(
        list(records.notes(tmp_path)), 0
    )
