"""Ranks that fail are started again: what is said, written down and kept. The ranks are small scripts."""

import socket
import sys
import time
from pathlib import Path

import pytest

from kept_running import finish, start
from whole_runs import events, records

HOST = socket.gethostname()
WHO = f"rank 0 on {HOST}"
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
    assert (code, len(said)) == (0, 2) and "x" in said
    assert any(line.endswith("lines that the ranks print are missing there") for line in said)


MOVES = "hold(); step(41); save(40); os.rename(folder, folder.parent / 'away')\n"


@pytest.mark.parametrize(
    "end", ["die()", "sys.exit('error: run/.epoch is gone: was the folder moved or removed?')"]
)
def test_a_run_whose_folder_was_moved_is_not_begun_anew(end: str, tmp_path: Path) -> None:
    code, said = finish(tmp_path / "run", MOVES + end)
    assert code == 1 and (tmp_path / "starts-0").read_text() == "x" and not (tmp_path / "run").exists()
    how = "was ended by SIGKILL" if end == "die()" else "failed with exit code 1"
    assert said[-1] == (
        f"error: {WHO} {how} at a step that is not known, and the run folder was moved or removed, or "
        "another start of the run has taken it over: not started again"
    )
    assert [line for line in said[:-1] if not line.endswith("moved or removed?")] == []


def test_a_run_whose_folder_is_removed_before_its_next_start_is_not_begun_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(run, "hold(); step(start); die()", wait=2.0) as parent:
        assert parent.stderr is not None
        parent.stderr.readline(), parent.stderr.readline()
        while (run / "events.jsonl").read_text().count('"restart"') != 2:
            time.sleep(0.01)
        run.rename(tmp_path / "away")
        _, err = parent.communicate(timeout=30)
    assert parent.returncode == 1 and "the run folder was moved or removed" in err
    assert (tmp_path / "starts-0").read_text() == "xx"


def test_a_run_that_another_start_has_taken_over_is_left_to_it(tmp_path: Path) -> None:
    taken = "hold(); step(41); (folder / '.epoch').write_text('9 bb process 1 on elsewhere\\n'); die()"
    code, said = finish(tmp_path / "run", taken)
    assert code == 1 and "another start of the run has taken it over" in said[-1]
    assert (tmp_path / "run/.epoch").read_text().startswith("9 bb")
