"""Ranks that fail are started again: what is said, written down and kept. The ranks are small scripts."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from supervised import alive, children
from whole_runs import events, records

# Runs `keep_running` over scripts instead of ranks. A script finds helpers and `folder`, `start` (from 1).
PARENT = """
import sys
from pathlib import Path
from launch.job import Job, ProcessCommand
from launch.local import keep_running
from launch.supervise import policy
from trainer.config.sections import SuperviseConfig
from trainer.process.ending import run_to_the_end

class Config:
    folder, name, parallel, train = Path(sys.argv[1]), "run", None, None
    supervise = SuperviseConfig(restarts=int(sys.argv[2]), notify=sys.argv[4])

scripts = sys.argv[5:]
policy.WAITS = (0.0, float(sys.argv[3]))
commands = [ProcessCommand((sys.executable, "-c", script)) for script in scripts]
keep_running.rank_commands = lambda job, **more: commands
run_to_the_end(lambda: keep_running.keep_running(Job("c.yaml", nproc=len(scripts)), Config))
"""
RANK = """
import json, os, signal, socket, sys, time
from pathlib import Path
signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
folder, rank = Path({folder!r}), {rank}
count = folder.parent / f"starts-{{rank}}"
start = len(count.read_text()) + 1 if count.exists() else 1
count.write_text("x" * start)

def line(name, **record):
    with (folder / name).open("a") as file:
        file.write(json.dumps(record) + "\\n")

def hold():
    folder.mkdir(exist_ok=True)
    (folder / ".epoch").write_text(f"{{start}} aa process {{os.getpid()}} on {{socket.gethostname()}}\\n")
    line("events.jsonl", kind="start", step=0)

def step(number):
    line("metrics.jsonl", step=number, loss=1.0)
    os.write(int(os.environ["GERMINAL_UNDER_WAY"]), b"%d\\n" % rank)

def save(number):
    (folder / "checkpoints" / f"step-{{number:09d}}").mkdir(parents=True)

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    time.sleep(60)
"""


def start(
    folder: Path,
    *scripts: str,
    restarts: int = 3,
    wait: float = 0.0,
    trapped: bool = False,
    notify: str = "",
) -> "subprocess.Popen[str]":
    ranks = [RANK.format(folder=str(folder), rank=rank) + script for rank, script in enumerate(scripts)]

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if trapped:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), str(restarts), str(wait), notify, *ranks],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def finish(folder: Path, *scripts: str, restarts: int = 3) -> tuple[int, list[str]]:
    with start(folder, *scripts, restarts=restarts) as parent:
        _, err = parent.communicate(timeout=60)
    return parent.returncode, err.splitlines()


ENDS = [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
HOST = socket.gethostname()
WHO = f"rank 0 on {HOST}"
WAITS = "print('up', file=sys.stderr, flush=True); time.sleep(60)"
DIES_TWICE = """
hold()
step(41); save(40) if start == 1 else None
if start < 3: die()
"""


def test_a_killed_rank_is_started_again_and_each_restart_is_a_line_and_an_event(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, said = finish(run, DIES_TWICE)
    told = f"{WHO} was ended by SIGKILL at step 41: starting again from step 40 (restart {{}} of 3)"
    assert (code, said) == (0, [told.format(1), told.format(2)])
    found = events(run, "restart")
    assert [event["reason"] for event in found] == said
    one = {"step": 41, "rank": 0, "host": HOST, "code": -9, "restart": 1, "from_step": 40, "start": 1}
    assert {key: found[0][key] for key in one} == one


def test_the_record_of_a_restart_goes_behind_a_torn_line_and_fences_the_dead_start_off(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    torn = "\n(folder / 'events.jsonl').open('a').write('{\"kind\": \"sa') if start == 1 else None\n"
    code, _ = finish(run, DIES_TWICE.replace("if start < 3", torn + "if start < 2"))
    assert code == 0
    assert [event["kind"] for event in records(run / "events.jsonl")] == ["start", "restart", "start"]


def test_a_fault_a_restart_and_the_end_are_told(tmp_path: Path) -> None:
    keep = tmp_path / "keep.py"
    keep.write_text("import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))")
    fails = "hold(); step(7); line('events.jsonl', kind='fault', step=7, reason='no', rank=0, host='h')\n"
    told = tmp_path / "told"
    command = f"{sys.executable} {keep} {told}"
    with start(tmp_path / "run", fails + "sys.exit(start == 1)", notify=command) as parent:
        parent.communicate(timeout=60)
    found = [(message["kind"], message["step"], message.get("code")) for message in records(told)]
    assert sorted(found) == [("end", 7, 0), ("fault", 7, None), ("fault", 7, None), ("restart", 7, 1)]


def test_three_failures_at_one_step_end_the_run_with_the_reason(tmp_path: Path) -> None:
    code, said = finish(tmp_path / "run", "hold(); step(41); save(40) if start == 1 else None; die()")
    assert code == 1 and len(said) == 3
    assert said[-1].startswith(f"error: rank 0 on {HOST} was ended by SIGKILL at step 41, the third time")
    (stop,) = events(tmp_path / "run", "stop")
    assert f"error: {stop['reason']}" == said[-1]


def test_the_first_rank_to_fail_is_named_and_its_error_shown(tmp_path: Path) -> None:
    fails = "time.sleep(0.3); step(1); sys.exit('error: no memory') if start == 1 else None"
    code, said = finish(tmp_path / "run", "hold(); step(1); time.sleep(1 if start > 1 else 60)", fails)
    assert (code, said[0]) == (0, "error: no memory")
    assert said[1:] == [
        f"rank 1 on {HOST} failed with exit code 1 at step 1: starting again from the beginning: nothing is "
        "saved (restart 1 of 3)"
    ]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("hold(); sys.exit('error: no corpus')", 1),  # before the first step of the first start
        ("hold(); step(1); sys.exit(2)", 2),
        ("hold(); step(1); sys.exit(75)", 75),
        ("hold(); step(1); sys.exit(130)", 130),
        ("hold(); step(1); line('events.jsonl', kind='fault', step=1, repeats=True); sys.exit(1)", 1),
    ],
)
def test_these_ends_are_left_as_they_are(script: str, code: int, tmp_path: Path) -> None:
    assert finish(tmp_path / "run", script)[0] == code
    assert (tmp_path / "starts-0").read_text() == "x"
    assert not events(tmp_path / "run", "restart") and not events(tmp_path / "run", "stop")


def test_a_hang_is_told_by_its_event(tmp_path: Path) -> None:
    hangs = "hold(); step(7); line('events.jsonl', kind='hang', step=7, rank=5, host='n9')"
    code, said = finish(tmp_path / "run", f"{hangs} if start == 1 else None; sys.exit(start == 1)")
    assert code == 0
    assert said[-1].startswith("rank 5 on n9 hung at step 7: starting again")


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_a_request_to_stop_between_two_starts_ends_the_run(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with start(run, "hold(); step(start); die()", wait=60.0, trapped=True) as parent:
        assert parent.stderr is not None
        parent.stderr.readline(), parent.stderr.readline()
        time.sleep(0.3)
        parent.send_signal(number)
        _, err = parent.communicate(timeout=20)
    how = "interrupted" if code == 130 else "asked to stop"
    said = f"error: {how} before the next start: nothing is saved: the same command begins anew\n"
    assert (parent.returncode, err) == (code, said)


def test_neither_a_terminals_new_size_nor_ctrl_z_ends_the_wait_for_the_next_start(tmp_path: Path) -> None:
    with start(tmp_path / "run", "hold(); step(start); die() if start < 3 else None", wait=3.0) as parent:
        assert parent.stderr is not None
        parent.stderr.readline(), parent.stderr.readline()
        for number in (signal.SIGWINCH, signal.SIGTSTP):
            parent.send_signal(number)
        until(lambda: state(parent.pid) == "T")
        parent.send_signal(signal.SIGCONT)
        _, err = parent.communicate(timeout=20)
    assert (parent.returncode, err) == (0, "")
    assert (tmp_path / "starts-0").read_text() == "xxx"


def test_requests_to_stop_while_the_end_is_told_change_nothing(tmp_path: Path) -> None:
    """SIGTERM every few milliseconds, from the ranks' end until that of the process."""
    tell = f"{sys.executable} -c 'import time; time.sleep(0.5)'"
    leaves = "hold(); step(7); save(7); print('saved', file=sys.stderr, flush=True); sys.exit(75)"
    with start(tmp_path / "run", leaves, notify=tell) as parent:
        assert parent.stderr is not None and parent.stderr.readline() == "saved\n"
        until(lambda: not children(parent.pid))
        while parent.poll() is None:
            parent.send_signal(signal.SIGTERM)
            parent.send_signal(signal.SIGUSR1)
            time.sleep(0.002)
        _, err = parent.communicate(timeout=20)
    assert (parent.returncode, err) == (75, "")


def test_slurms_burst_of_signals_to_supervisor_and_ranks_at_once_saves_and_leaves(tmp_path: Path) -> None:
    """SIGTERM, SIGCONT, SIGTERM to every process of the job, the supervisor's among them."""
    polite = """
def leave(number, frame):
    time.sleep(0.5); save(7); sys.exit(75)
signal.signal(signal.SIGTERM, leave)
hold(); step(7)
"""
    with start(tmp_path / "run", polite + WAITS) as parent:
        assert parent.stderr is not None and parent.stderr.readline() == "up\n"
        for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGTERM):
            for pid in (parent.pid, *children(parent.pid)):
                os.kill(pid, number)
            time.sleep(0.005)
        _, err = parent.communicate(timeout=20)
    assert (parent.returncode, err) == (75, "")
    assert (tmp_path / "run/checkpoints/step-000000007").is_dir()


@pytest.mark.parametrize("saved", [0, 30])
def test_a_rank_killed_after_a_request_names_the_checkpoint_or_says_that_there_is_none(
    saved: int, tmp_path: Path
) -> None:
    stubborn = """
signal.signal(signal.SIGTERM, lambda *_: die())
hold(); step(31)
"""
    stubborn += f"save({saved})\n" if saved else ""
    with start(
        tmp_path / "run", stubborn + "print('up', file=sys.stderr, flush=True); time.sleep(60)"
    ) as parent:
        assert parent.stderr is not None and parent.stderr.readline() == "up\n"
        parent.terminate()
        _, err = parent.communicate(timeout=20)
    at = tmp_path / "run/checkpoints/step-000000030"
    after = f"the same command goes on from step 30: {at}" if saved else "nothing is saved: the same command"
    assert parent.returncode == 128 + signal.SIGTERM
    assert err.startswith(f"error: asked to stop, and killed before the state was saved; {after}")


def test_ctrl_z_stops_the_ranks_too(tmp_path: Path) -> None:
    with start(
        tmp_path / "run", "hold(); print('up', file=sys.stderr, flush=True); time.sleep(60)"
    ) as parent:
        assert parent.stderr is not None and parent.stderr.readline() == "up\n"
        (rank,) = children(parent.pid)

        def states() -> set[str]:
            return {state(pid) for pid in (parent.pid, rank)}

        parent.send_signal(signal.SIGTSTP)
        until(lambda: states() == {"T"})
        parent.send_signal(signal.SIGCONT)
        until(lambda: "T" not in states())
        parent.kill()
    until(lambda: not alive(rank))


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_logs_of_each_rank_are_appended_over_restarts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    writer = r"""
print("before", file=sys.stderr); hold(); step(1)
print(f"\r\x1b[2Kstep {start}", file=sys.stderr, flush=True)
(folder.parent / f"printed-{start}").touch()
time.sleep(60 if start == 1 else 0)
"""
    dies = """
while not (folder.parent / f"printed-{start}").exists(): time.sleep(0.01)
step(1); print(f"hello {start}", flush=True)
if start == 1: die()
"""
    assert finish(run, writer, dies)[0] == 0
    logs = [(run / "logs" / f"rank-0000{rank}.log").read_text().splitlines() for rank in (0, 1)]
    printed = [[line for line in log if not line.startswith("===")] for log in logs]
    assert printed == [["before", "step 1", "before", "step 2"], ["hello 1", "hello 2"]]
    headings = [line for line in logs[1] if line.startswith("===")]
    assert len(headings) == 2
    assert " start 1 by process" in headings[0] and "after rank 1 on" in headings[1]


def test_a_run_that_is_not_ours_gets_no_lines_of_ours(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".epoch").write_text("4 aa process 1 on elsewhere\n")
    assert finish(run, "print('the run is held', file=sys.stderr); sys.exit(75)")[0] == 75
    assert [path.name for path in run.iterdir()] == [".epoch"]
    assert finish(tmp_path / "other", "sys.exit('error: no')")[0] == 1
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, said = finish(run, "hold(); (folder / 'logs').write_text(''); step(1); print('x', file=sys.stderr)")
    assert (code, said) == (0, ["x"])
