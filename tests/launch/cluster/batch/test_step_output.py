"""What srun prints: who failed first, and which lines belong to which rank."""

import os
import time
from pathlib import Path

import pytest

from launch.cluster.batch.placing import Placing
from launch.cluster.batch.step import Placement, srun
from launch.cluster.batch.step_output import RankEnd, StepOutput
from launch.local import rank_log
from launch.local.rank_log import RankLog
from launch.supervise.policy import Attempt

# As SLURM 22.05 prints: rank 3 fails, srun ends the others, and its own exit code is 75.
FAILED = b"""3: error: boo
srun: error: n2: task 3: Exited with exit code 1
srun: launch/slurm: _step_signal: Terminating StepId=9.0
0: slurmstepd-n1: error: *** STEP 9.0 ON n1 CANCELLED AT 2026-11-22T07:59:03 ***
 2: stopped
srun: error: n1: tasks 0-2: Exited with exit code 75
"""


def output(folder: Path, world: int = 4) -> StepOutput:
    return StepOutput(world, lambda rank: RankLog(folder / f"{rank}.log", lambda: True))


def test_the_first_rank_to_fail_counts_and_each_rank_has_its_lines(tmp_path: Path) -> None:
    found = output(tmp_path)
    for at in range(0, len(FAILED), 7):  # in pieces
        found.read(FAILED[at : at + 7])
    found.read(b"")
    found.close()
    assert found.first == RankEnd(1, 3, "n2") and found.lost == []
    logs = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert logs["3.log"] == "error: boo\n" and logs["2.log"] == "stopped\n" and len(logs) == 3


def test_a_rank_that_was_killed_is_known_though_another_is_told_of_first(tmp_path: Path) -> None:
    found = output(tmp_path)
    found.read(b"srun: error: n2: task 2: Exited with exit code 1\nsrun: error: n2: task 3: Killed\n")
    found.read(b"srun: error: n1: tasks 0-1: Killed\n")
    assert found.first == RankEnd(1, 2, "n2") and found.signals == {3: 9}
    found.close()


@pytest.mark.parametrize("label", ["", "0: "])
def test_a_node_without_the_ranks_program_is_no_wrong_config(label: str, tmp_path: Path) -> None:
    found = output(tmp_path)
    found.read(f"{label}slurmstepd: error: execve(): apptainer: No such file or directory\n".encode())
    found.read(b"srun: error: n1: task 0: Exited with exit code 2\n")
    assert found.first == RankEnd(1, 0, "n1")
    found.close()


def test_a_bounded_number_of_logs_is_open_and_no_line_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_log, "OPEN_LOGS", 4)
    found = output(tmp_path, world=20)
    before = len(os.listdir("/proc/self/fd"))
    files = [tmp_path / f"{rank}.log" for rank in range(20)]
    deadline = time.monotonic() + 10
    for text in ("a", "b"):
        found.read("".join(f"{rank}: {text}\n" for rank in range(20)).encode())
        while not all(f.exists() and text in f.read_text() for f in files) and time.monotonic() < deadline:
            time.sleep(0.01)
    time.sleep(0.05)  # the last one may be open beside the four for a moment
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    found.close()
    assert [file.read_text() for file in files] == ["a\nb\n"] * 20


def test_a_log_that_cannot_be_opened_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_log, "_WRITER", rank_log._Writer())
    for rank in range(4):
        (tmp_path / f"{rank}.log").mkdir()
    found = output(tmp_path)
    found.read(b"0: a\n1: a\n2: a\n0: b\n")
    found.close()
    said = capfd.readouterr().err
    assert said.count("Is a directory") == said.count("are missing there") == 1


@pytest.mark.parametrize(
    ("line", "first"),
    [
        (b"srun: error: n2: task 3: Killed\n", RankEnd(-9, 3, "n2")),
        (b"srun: error: n2: tasks 2-3: Segmentation fault (core dumped)\n", RankEnd(-11, 2, "n2")),
        (b"srun: error: n2: tasks 1,3: Killed\n", RankEnd(-9, 1, "n2")),
        (b"srun: error: n2: task 1: User defined signal 1\n", RankEnd(-10, 1, "n2")),
        (b"srun: error: n2: task 1: Out Of Memory\n", RankEnd(-9, 1, "n2")),
        (b"1: srun: error: n2: task 3: Killed\n", None),  # a rank's own line
        (b"9: not a rank of four\n", None),
    ],
)
def test_the_words_of_srun(line: bytes, first: RankEnd | None, tmp_path: Path) -> None:
    found = output(tmp_path)
    found.read(line)
    found.close()
    assert found.first == first


def test_a_line_without_an_end_is_passed_on_in_parts(tmp_path: Path, capfd) -> None:
    found = output(tmp_path)
    for _ in range(100):
        found.read(b"x" * 10_000)
    assert len(capfd.readouterr().err.replace("\n", "")) > 900_000
    found.read(b"y\nsrun: error: n2: task 3: Killed\n")
    found.close()
    assert found.first == RankEnd(-9, 3, "n2")


@pytest.mark.parametrize(
    "line",
    [
        b"srun: error: Node failure on n2\n",
        b"srun: error: Task launch for StepId=8.0 failed on node n2: Communication connection failure\n",
    ],
)
def test_a_node_that_srun_lost(line: bytes, tmp_path: Path) -> None:
    found = output(tmp_path)
    found.read(line)
    assert found.lost == ["n2"]


def test_the_ranks_of_a_step_fill_one_node_after_another() -> None:
    where = Placement(("n1", "n3"), nproc=2, cpus=3)
    assert [where.host_of(rank) for rank in range(5)] == ["n1", "n1", "n3", "n3", ""]
    words = srun(where, [], ["true", "a b"])
    assert words[0] == "srun" and words[-3:] == ["--", "true", "a b"]
    wanted = {"--nodelist=n1,n3", "--ntasks=4", "--cpus-per-task=3", "--kill-on-bad-exit=1", "--overlap"}
    assert wanted | {"--export=ALL"} <= set(words)


NODES = ("n1", "n2", "n3")
KILLED, RAISED = Attempt(-9, host="n2"), Attempt(1, host="n2")


def test_with_a_node_to_spare_any_failure_leaves_the_node_out() -> None:
    placing = Placing(2, fits=lambda nodes: False)
    assert placing.choose(NODES) == ("n1", "n2")
    assert placing.exclude(RAISED, NODES)
    assert placing.choose(NODES) == ("n1", "n3")
    assert not placing.exclude(Attempt(1, host="n1"), NODES)  # none is left to spare
    assert placing.choose(("n1", "n2")) == ("n1", "n2")  # n3 is lost: back to n2
    assert placing.choose(("n1",)) == ()


def test_fewer_nodes_only_where_the_run_has_a_layout_and_the_machine_is_to_blame() -> None:
    placing = Placing(3, fits=lambda nodes: nodes == 2)
    assert not placing.exclude(RAISED, NODES)
    assert placing.choose(NODES) == NODES
    assert placing.exclude(RAISED, NODES)  # the second time there
    assert placing.choose(NODES) == ("n1", "n3")
    assert Placing(3, fits=lambda nodes: nodes == 2).exclude(KILLED, NODES)
    assert not Placing(3, fits=lambda nodes: False).exclude(KILLED, NODES)
    assert Placing(3, fits=lambda nodes: nodes == 1).choose(("n1", "n2")) == ("n1",)


def test_a_failure_without_a_known_host_leaves_no_node_out() -> None:
    assert not Placing(2, fits=lambda nodes: True).exclude(Attempt(-9), NODES)
