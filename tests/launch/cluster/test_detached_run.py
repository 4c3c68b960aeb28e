"""`--backend local`: a run in the background of this machine."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cluster import detached, submission
from launch.cluster.submission import SentJob
from launch.supervise.process import begin

RUN = Path("runs/tiny")
FOLDER = RUN / "submit/1"
# Handles SIGTERM as the job does, which gets it held back.
WAITS = f"""#!{sys.executable}
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("told"))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print("begun", flush=True)
time.sleep(60)
"""
HAS_A_CHILD = "#!/bin/bash\nsleep 61 & wait\n"
ENDS = "#!/bin/bash\n"


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Makes the interpreter of the job: a script with these lines."""
    monkeypatch.chdir(tmp_path)

    def make(text: str) -> str:
        (tmp_path / "python").write_text(text)
        (tmp_path / "python").chmod(0o755)
        return str(tmp_path / "python")

    return make


def until(reached, what: str) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def state(germinal) -> dict:
    return json.loads(germinal("status", "tiny", "--json")[1])


def test_a_run_goes_on_without_a_terminal_until_it_is_cancelled(config, germinal, python) -> None:
    words = ("submit", config, "--backend=local", f"--python={python(WAITS)}")
    code, out, err = germinal(*words)
    assert code == 0, err
    (job,) = submission.jobs(FOLDER)
    assert f"tiny: process {job.job}," in out
    assert state(germinal)["state"] == "running" and state(germinal)["jobs"] == [job.job]
    code, line = germinal.refusal(*words)
    assert code == 75 and f"job {job.job} of this run is RUNNING" in line and "--after" not in line
    until(lambda: "begun" in germinal("logs", "tiny")[1], "nothing is logged")
    code, out, _ = germinal("cancel", "tiny")
    assert code == 0 and out == f"process {job.job}: saves and ends\n"
    until(lambda: "told" in germinal("logs", "tiny")[1], "the job was not told")
    until(lambda: not state(germinal)["jobs"], "the job goes on")
    assert state(germinal)["state"] == "cancelled"


def test_cancel_now_ends_all_processes_of_the_job(config, germinal, python) -> None:
    germinal("submit", config, "--backend=local", f"--python={python(HAS_A_CHILD)}")
    (job,) = submission.jobs(FOLDER)
    found = f"/proc/{job.job}/task/{job.job}/children"
    until(lambda: Path(found).read_text(), "no child")
    child = Path(found).read_text().strip()
    assert germinal("cancel", "tiny", "--now")[1] == f"process {job.job}: killed\n"
    until(lambda: not state(germinal)["jobs"], "the job goes on")
    until(lambda: not Path(f"/proc/{child}").exists() or is_dead(child), "a child is left")


def is_dead(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def test_another_process_with_the_same_number_is_not_taken_for_the_job() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        job = SentJob(0.0, str(process.pid), detached.socket.gethostname(), begin(process.pid))
        assert detached.is_alive(job) is True
        assert detached.is_alive(SentJob(0.0, job.job, job.host, "1 another boot")) is False
        assert detached.is_alive(SentJob(0.0, job.job, "elsewhere", job.started)) is None
        detached.ask_to_stop(SentJob(0.0, job.job, job.host, "1 another boot"), signal.SIGKILL)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert detached.is_alive(job) is False


@pytest.mark.parametrize(
    ("script", "code", "state_", "reason"),
    [
        ("exit 0", 0, "done", "done"),
        ("exit 75", 75, "stopped", "stopped on request"),
        ("exit 1", 1, "failed", "exit code 1: see `germinal logs tiny`"),
        ("kill -KILL $$", 137, "failed", "exit code 137"),
    ],
)
def test_how_the_run_ended_is_kept(
    script, code, state_, reason, config, germinal, python, monkeypatch
) -> None:
    """The job's process itself, with a `germinal train` that ends so."""
    germinal("submit", config, "--backend=local", f"--python={python(ENDS)}", "--nproc=2")
    until(lambda: not state(germinal)["jobs"], "the job goes on")
    train = python(f"#!/bin/bash\nprintf '%s\\n' \"$@\" > words\n{script}\n")
    before = {number: signal.getsignal(number) for number in detached.STOPS}
    monkeypatch.setattr(sys, "executable", train)
    try:
        assert detached.main(str(FOLDER)) == code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    words = ["-P", "-m", "launch.cli", "train", submission.read(FOLDER).config, "--nproc", "2"]
    assert Path("words").read_text().splitlines() == words
    found = state(germinal)
    assert (found["state"], found["code"]) == (state_, code) and reason in found["reason"]
    assert [note.kind for note in submission.notes(FOLDER)] == ["start", "end"]
