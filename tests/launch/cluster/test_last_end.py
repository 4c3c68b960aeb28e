"""The state of a run that was not submitted: how it ended, or that it is being started again."""

import json
import os
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from launch import cli
from launch.cluster import state
from launch.local import keep_running
from launch.supervise.policy import Again, Attempt
from launch.supervise.process import begin
from launch.supervise.record import record

START = {"kind": "start", "step": 0, "reason": "new run"}
SAVE = {"kind": "save", "step": 2, "reason": "every 2 steps"}
DIED = "rank 0 was ended by SIGKILL at step 3: starting again from step 2 (restart 1 of 3)"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("train: {steps: 8}\n")
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 2.5}\n')
    (folder / "checkpoints/step-000000002").mkdir(parents=True)
    (folder / "checkpoints/step-000000002/MANIFEST.json").write_text("{}")
    return folder


def write(run: Path, *events: dict) -> None:
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def seen(run: Path) -> tuple[str, str, int | None]:
    found = state.status(run, {})
    return found.state, found.reason, found.code


def test_a_run_that_was_stopped_in_its_last_evaluation_is_not_done(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 8, "loss": 2.5}\n')
    write(run, {"kind": "start", "step": 0, "reason": "new run"})
    assert seen(run) == ("done", "done", 0)
    write(run, {"kind": "stop", "step": 8, "reason": "saved at step 8 after a request to stop"})
    assert seen(run) == ("stopped", "saved at step 8 after a request to stop", 75)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ((), ("stopped", "killed without a word after step 3, newest checkpoint 2", None)),
        (
            ({"kind": "stop", "step": 3, "reason": "saved at step 3 after a request to stop"},),
            ("stopped", "saved at step 3 after a request to stop", 75),
        ),
        (
            ({"kind": "fault", "step": 3, "reason": "disk\nfull"},),
            ("failed", "ended by a fault: disk full", 1),
        ),
        (
            ({"kind": "fault", "step": 2, "reason": "a checkpoint was damaged"},),
            ("stopped", "killed without a word after step 3, newest checkpoint 2", None),
        ),
        (
            ({"kind": "stop", "step": 3, "reason": "it failed three times", "code": 1},),
            ("failed", "ended by a fault: it failed three times", 1),
        ),
    ],
)
def test_a_run_that_has_ended_says_how(run: Path, last: tuple, expected: tuple) -> None:
    write(run, START, SAVE, *last)
    assert seen(run) == expected
    write(run, START, SAVE, *last, START)  # a later start is what counts
    assert seen(run)[1].startswith("killed without a word")


def test_a_run_that_is_started_again_is_restarting_while_its_supervisor_lives(run: Path) -> None:
    write(run, START, SAVE)
    assert record(run, Attempt(-9, step=3, saved_after=2), Again(DIED))
    assert seen(run) == ("restarting", DIED, None)
    assert state.status(run, {}).progress.restarts == 1 and state.status(run, {}).is_live
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    write(run, *events, START)  # the new rank 0 has begun, and was killed
    assert seen(run)[0] == "stopped" and state.status(run, {}).progress.restarts == 1


def test_a_supervisor_that_died_or_is_elsewhere_is_not_waited_for_in_vain(run: Path) -> None:
    dead = subprocess.Popen(["sleep", "60"])
    supervisor = {"pid": dead.pid, "host": socket.gethostname(), "began": begin(dead.pid)}
    restart = {"kind": "restart", "step": 3, "reason": DIED, "supervisor": supervisor}
    write(run, START, restart)
    assert seen(run)[0] == "restarting"
    dead.kill()
    dead.wait()
    assert seen(run)[:2] == ("stopped", f"ended before the start that was to follow: {DIED}")
    for minutes, expected in ((1, "restarting"), (30, "stopped")):
        then = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
        elsewhere = {**supervisor, "host": "another machine"}
        write(run, START, restart | {"time": then, "supervisor": elsewhere})
        assert seen(run)[0] == expected


def test_a_run_whose_supervisor_has_not_decided_yet_is_not_over(run: Path) -> None:
    """While the other ranks end, up to ten seconds: `germinal follow` must not leave."""
    write(run, START, SAVE, {"kind": "fault", "step": 3, "reason": "connection closed by peer"})
    (run / "logs").mkdir()
    log = run / "logs/rank-00000.log"
    heading = keep_running._heading(1, "")  # by this very process
    log.with_name("rank-00000.log.1").write_text(f"{heading}\n")  # the log has grown
    log.write_text("step 1\n")
    found = state.status(run, {})
    assert (found.state, found.code, found.is_live) == ("ending", None, True)
    assert f"process {os.getpid()} on " in found.reason
    ended = subprocess.Popen(["true"])
    ended.wait()
    newer = heading.replace(f"process {os.getpid()} ", f"process {ended.pid} ")
    log.write_text(f"{heading}\nstep 1\n{newer}\n")
    assert seen(run)[0] == "failed"
    before = (datetime.now(UTC) - timedelta(days=1000)).isoformat(timespec="seconds")
    log.write_text(f"{heading.replace(heading.split()[1], before)}\n")
    assert seen(run)[0] == "failed", "a process that began later has the number by chance"


def test_an_error_with_brackets_is_shown_as_it_is(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    reason = "[/pytorch/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1454 [bold]:smile:"
    write(run, START, {"kind": "fault", "step": 3, "reason": reason})
    for words in (["status", "tiny"], ["status"]):
        assert cli.main(words) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in (*reason.split(), "fault:")), out
