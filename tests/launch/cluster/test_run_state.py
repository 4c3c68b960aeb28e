"""`germinal status|logs|follow|cancel`: by the queue, the jobs' notes and the run folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cluster import slurm as programs
from launch.cluster import state, submission
from launch.cluster.submission import Ending, Note
from launch.look import follow

RUN = Path("runs/tiny")
FOLDER = RUN / "submit/1"


@pytest.fixture
def submitted(config, slurm, germinal) -> Path:
    """A run whose job 101 was sent; the queue says nothing of it yet."""
    assert germinal("submit", config, "--nodes=2")[0] == 0
    slurm.queue()
    return FOLDER


def progress(steps: int, starts: int = 1) -> None:
    """What a run of four steps has written after some of them, half a second each."""
    line = {"loss": 2.5, "tokens_per_second": 1000.0, "step_seconds": 0.5}
    (RUN / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n + 1} | line) + "\n" for n in range(steps))
    )
    (RUN / "events.jsonl").write_text(json.dumps({"kind": "start", "step": 0}) + "\n")
    (RUN / "events.jsonl").write_text((RUN / "events.jsonl").read_text() * starts)
    (RUN / "config.yaml").write_text("train: {steps: 4}\n")


def seen(germinal, run: str = "tiny") -> dict:
    code, out, err = germinal("status", run, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(
    ("queued", "state", "reason"),
    [
        (("PENDING", "Resources"), "queued", "job 101 waits: Resources"),
        (("PENDING", "BeginTime"), "queued", "job 101 waits: BeginTime"),
        (("PENDING", "JobHeldUser"), "held", "job 101 waits: JobHeldUser"),
        (("CONFIGURING", "None"), "starting", ""),
        (("RUNNING", "None"), "running", ""),
        (("COMPLETING", "None"), "ending", ""),
        (("CANCELLED", "None"), "cancelled", "SLURM says CANCELLED of job 101"),
        (("COMPLETED", "None"), "done", "SLURM says COMPLETED of job 101"),
        (("TIMEOUT", "TimeLimit"), "failed", "SLURM says TIMEOUT of job 101"),
        (("NODE_FAIL", "None"), "failed", "SLURM says NODE_FAIL of job 101"),
        (("A_NEW_WORD", "None"), "a_new_word", ""),
    ],
)
def test_what_the_queue_says(queued, state, reason, submitted, slurm, germinal) -> None:
    slurm.queue(("101", *queued))
    found = seen(germinal)
    assert (found["state"], found["reason"]) == (state, reason)


def test_step_rate_time_left_and_restarts(submitted, slurm, germinal) -> None:
    slurm.queue(("101", "RUNNING", "None"))
    progress(3, starts=2)
    with (RUN / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "loss": 2.5, "tokens_per_second": 17126.4, "step_seconds": 0.5}))
    submission.note(FOLDER, Note(time.time(), "101", "restart", "rank 1 on n2 was ended by SIGKILL"))
    found = seen(germinal)
    names = (
        "step",
        "steps",
        "loss",
        "steps_per_second",
        "seconds_left",
        "restarts",
        "jobs",
        "nodes",
        "job_left",
    )
    assert [found[name] for name in names] == [3, 4, 2.5, 2.0, 0.5, 1, ["101"], "n[1-2]", "1:00"]
    assert found["reason"] == "rank 1 on n2 was ended by SIGKILL" and found["seconds_since_step"] < 60
    code, out, _ = germinal("status", "tiny")
    assert code == 0 and "3 of 4" in out and "2 steps/s, 17,126 tokens/s" in out
    # squeue's time left, 1:00, is written as the run's own is.
    assert [" ".join(line.split()) for line in out.splitlines() if "time left" in line] == [
        "time left 0:00:00",
        "job's time left 0:01:00",
    ]


@pytest.mark.parametrize(("code", "word"), [(0, "done"), (75, "stopped"), (1, "failed"), (2, "failed")])
def test_how_the_last_job_ended(code, word, submitted, germinal) -> None:
    submission.end(FOLDER, Ending(time.time(), "101", code, "because"))
    found = seen(germinal)
    assert (found["state"], found["reason"], found["code"]) == (word, "because", code)
    assert germinal("follow", "tiny")[0] == code


def test_a_job_that_may_not_be_requeued_has_stopped(submitted, slurm, germinal) -> None:
    slurm.queue(("101", "FAILED", "NonZeroExitCode"))  # SLURM's word for exit code 75
    submission.note(FOLDER, Note(time.time(), "101", "stop", "the time limit is near; submit the run again"))
    found = seen(germinal)
    assert (found["state"], found["code"]) == ("stopped", 75) and "submit the run again" in found["reason"]


def test_the_log_of_one_rank(submitted, germinal) -> None:
    (RUN / "logs").mkdir()
    (RUN / "logs/rank-00002.log").write_text("mine\n")
    assert germinal("logs", "tiny", "--rank=2")[1] == "mine\n"
    code, line = germinal.refusal("logs", "tiny", "--rank=1")
    assert code == 1 and "--rank 1" in line and "there are those of 2" in line


def test_a_job_that_left_no_word(submitted, germinal) -> None:
    assert seen(germinal)["state"] == "gone"
    assert germinal("follow", "tiny")[0] == 1
    progress(4)
    assert germinal("follow", "tiny")[0] == 0  # all steps are done, whatever became of the job


def test_without_the_queue_the_run_folder_says_how_far(submitted, slurm, germinal, monkeypatch) -> None:
    progress(2)
    slurm.fails("squeue", "squeue: error: Unable to contact slurm controller (connect failure)\n")
    found = seen(germinal)
    assert (found["state"], found["step"]) == ("unknown", 2)
    assert found["reason"] == "squeue failed: Unable to contact slurm controller (connect failure)"
    monkeypatch.setenv("PATH", str(RUN))  # this machine may have a squeue of its own
    assert "squeue: no such program here" in seen(germinal)["reason"]


def test_a_queue_that_does_not_answer_is_not_waited_for(submitted, slurm, germinal, monkeypatch) -> None:
    slurm.hangs("squeue")
    monkeypatch.setattr(programs, "ASKING", 0.2)
    begin = time.monotonic()
    found = seen(germinal)
    assert (found["state"], found["reason"]) == ("unknown", "squeue did not answer within 0.2 s")
    assert time.monotonic() - begin < 30
    code, line = germinal.refusal("cancel", "tiny")
    assert code == 1 and "did not answer" in line


def test_a_run_is_found_by_name_folder_job_and_config(submitted, slurm, germinal, tmp_path) -> None:
    progress(1)
    for word in ("tiny", "runs/tiny", str(tmp_path / "runs/tiny"), "101", "runs/tiny/config.yaml"):
        assert seen(germinal, word)["step"] == 1, word
    away = tmp_path / "away"
    away.mkdir()
    os.chdir(away)
    slurm.answers(
        "scontrol", f"   Command=x\n   StdOut={tmp_path}/runs/tiny/submit/1/log-101.txt\n   Power=\n"
    )
    assert seen(germinal, "101")["step"] == 1
    slurm.answers("scontrol", "   StdOut=/elsewhere/slurm-101.out\n")
    for word, says in (
        ("101", "no job of a run"),
        ("tniy", "no such run folder"),
        ("x/y", "no such run folder"),
    ):
        code, line = germinal.refusal("status", word)
        assert code == 2 and says in line


def test_all_runs_are_one_table(submitted, slurm, germinal, config) -> None:
    germinal("submit", config, "name=other")
    slurm.queue(("101", "RUNNING", "None"), ("102", "PENDING", "Priority"))
    code, out, _ = germinal("status")
    lines = [line.split()[:3] for line in out.splitlines() if line.strip().startswith(("tiny", "other"))]
    assert code == 0 and lines == [["other", "queued", "102"], ["tiny", "running", "101"]]
    runs = json.loads(germinal("status", "--json")[1])["runs"]
    assert [run["state"] for run in runs] == ["queued", "running"]


def test_a_run_that_was_never_submitted(slurm, germinal) -> None:
    RUN.mkdir(parents=True)
    progress(4)
    assert (seen(germinal)["state"], seen(germinal)["code"]) == ("done", 0)
    assert germinal("cancel", "tiny")[:2] == (0, "tiny: done, nothing to cancel\n")
    progress(2, starts=3)
    assert (seen(germinal)["state"], seen(germinal)["restarts"]) == ("stopped", 0), "starts by hand"
    code = (
        "import sys, time; from pathlib import Path; from common.lock import FolderLock\n"
        "lock = FolderLock.take(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(RUN)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline()
        found = seen(germinal)
        assert found["state"] == "running" and found["reason"].startswith(f"by process {holder.pid} on ")
    finally:
        holder.kill()
        holder.wait()


def test_logs_show_the_end_of_the_newest(submitted, slurm, germinal) -> None:
    code, line = germinal.refusal("logs", "tiny")
    assert code == 1 and "no log" in line
    (FOLDER / "log-101.txt").write_text("".join(f"line {n}\n" for n in range(300)))
    assert germinal("logs", "tiny")[1].splitlines() == [f"line {n}" for n in range(200, 300)]
    assert germinal("logs", "tiny", "--lines=2")[1] == "line 298\nline 299\n"
    assert len(germinal("logs", "tiny", "--lines=0")[1].splitlines()) == 300
    assert germinal("logs", "tiny", "--job=7")[0] == 1


def test_cancel_takes_waiting_jobs_out_and_has_a_running_one_save(config, slurm, germinal) -> None:
    germinal("submit", config, "--chain=3")
    slurm.queue(
        ("101", "RUNNING", "None"), ("102", "PENDING", "Dependency"), ("103", "PENDING", "Dependency")
    )
    code, out, _ = germinal("cancel", "tiny")
    assert code == 0 and "job 102, 103: cancelled" in out and "job 101: saves and ends" in out
    assert slurm.calls("scancel") == [["102", "103"], ["--batch", "--signal=TERM", "101"]]
    assert submission.is_cancelled(FOLDER)
    slurm.queue(("101", "RUNNING", "None"))
    assert seen(germinal)["state"] == "ending"
    assert germinal("cancel", "tiny", "--now")[0] == 0
    assert slurm.calls("scancel")[-1] == ["101"]
    slurm.queue()
    assert seen(germinal)["state"] == "cancelled"
    code, line = germinal.refusal("cancel", "tiny")
    assert code == 1 and "no job of this run waits or runs" in line


def test_follow_shows_what_changes_until_the_end(submitted, slurm, germinal, monkeypatch) -> None:
    looks = iter(
        [
            lambda: slurm.queue(("101", "RUNNING", "None")),
            lambda: progress(1),
            lambda: None,
            lambda: (slurm.queue(), submission.end(FOLDER, Ending(time.time(), "101", 75, "saved"))),
        ]
    )
    monkeypatch.setattr(follow.time, "sleep", lambda _: next(looks)())
    slurm.queue(("101", "PENDING", "Resources"))
    code, out, _ = germinal("follow", "tiny")
    lines = [line.split(None, 1)[1] for line in out.splitlines()]
    assert code == 75 and len(lines) == 4
    assert lines[0] == "queued  (job 101 waits: Resources)" and lines[1] == "running"
    assert lines[2].startswith("running  step 1/4  loss 2.5  0:00:02 left")
    assert lines[3].startswith("stopped  step 1/4") and lines[3].endswith("(saved)")


def test_ctrl_c_leaves_the_run_alone(submitted, slurm, germinal, monkeypatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow.time, "sleep", interrupt)
    slurm.queue(("101", "RUNNING", "None"))
    code, _, err = germinal("follow", "tiny")
    assert code == 130 and "the run goes on: `germinal status tiny`" in err
    assert not slurm.calls("scancel") and not submission.is_cancelled(FOLDER)


def test_torn_and_foreign_lines_are_left_out(submitted, germinal) -> None:
    progress(2)
    with (RUN / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": 3, "eval": {}}\n{"step": 9, "lo')
    with (FOLDER / "jobs.jsonl").open("a") as file:
        file.write('{"job"')
    (FOLDER / "notes.jsonl").write_text('{"kind": "start"}\nnonsense\n')
    assert seen(germinal)["step"] == 2
    assert state.find("tiny", os.environ) == RUN


def test_the_submission_that_runs_counts_and_then_the_one_that_did_something_last(
    config, submitted, slurm, germinal
) -> None:
    slurm.queue(("101", "RUNNING", "None"))
    assert germinal("submit", config, "--after=tiny", "train.steps=8")[0] == 0
    slurm.queue(("101", "RUNNING", "None"), ("102", "PENDING", "Dependency"))
    submission.note(FOLDER, Note(time.time(), "101", "start", "2 ranks on n1 n2"))
    progress(2)
    found = seen(germinal)
    assert (found["state"], found["reason"], found["steps"]) == ("running", "2 ranks on n1 n2", 4)
    slurm.queue(("102", "PENDING", "Priority"))
    assert (seen(germinal)["state"], seen(germinal)["steps"]) == ("queued", 8)
    germinal("cancel", "tiny")
    submission.ask_to_cancel(FOLDER)
    submission.end(FOLDER, Ending(time.time(), "101", 75, "cancelled; saved at step 2"))
    slurm.queue(("101", "FAILED", "None"), ("102", "CANCELLED", "None"))
    assert (seen(germinal)["state"], seen(germinal)["reason"]) == ("cancelled", "cancelled; saved at step 2")
