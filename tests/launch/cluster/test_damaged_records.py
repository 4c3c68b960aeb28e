"""Records that are damaged: each costs its own line, never the view of the run or of the other runs."""

import json
import time
from pathlib import Path

import pytest

from launch.cluster import lines, progress, submission
from launch.cluster.submission import Note
from trainer.record import reading

RUN = Path("runs/tiny")
FOLDER = RUN / "submit/1"
DEEP = "[" * 100_000


@pytest.fixture
def submitted(config, slurm, germinal, monkeypatch) -> Path:
    """Two runs, whose jobs 101 and 102 run."""
    monkeypatch.setattr(lines, "_said", set())
    assert germinal("submit", config)[0] == 0
    assert germinal("submit", config, "name=other")[0] == 0
    slurm.queue(("101", "RUNNING", "None"), ("102", "RUNNING", "None"))
    return FOLDER


def append(file: Path, *added: object) -> None:
    with file.open("a") as opened:
        for line in added:
            opened.write(f"{line if isinstance(line, str) else json.dumps(line)}\n")


def states(germinal) -> dict[str, tuple[str, str]]:
    code, out, err = germinal("status", "--json")
    assert code == 0, err
    assert germinal("status")[0] == 0
    return {Path(run["folder"]).name: (run["state"], run["reason"]) for run in json.loads(out)["runs"]}


def test_wrong_lines_are_left_out_and_named_once(submitted, germinal) -> None:
    job = {"time": 1.0, "job": "7", "host": "", "started": ""}
    append(FOLDER / "jobs.jsonl", job | {"job": 12}, [1], job | {"job": "x"}, DEEP, job | {"time": None})
    code, _, err = germinal("status", "tiny")
    assert (
        code == 0 and err == f"warning: {FOLDER}/jobs.jsonl: 5 lines are damaged or foreign, and left out\n"
    )
    assert states(germinal)["tiny"] == ("running", "")
    assert germinal("status")[2] == ""


def test_wrong_notes_do_not_hide_the_last_good_one(submitted, germinal) -> None:
    note = {"time": 1.0, "job": "101", "kind": "start"}
    append(
        FOLDER / "notes.jsonl", note | {"reason": "good"}, note | {"time": "x"}, note | {"kind": [1]}, DEEP
    )
    assert states(germinal)["tiny"] == ("running", "good")
    assert [line.reason for line in submission.notes(FOLDER)] == ["good"]


@pytest.mark.parametrize("text", ['{"time": null, "job": "1", "code": 0}', "{", "[]", DEEP, "\x00"])
def test_a_damaged_ending_is_the_reason_of_its_own_run(text, submitted, slurm, germinal) -> None:
    (FOLDER / "end.json").write_text(text)
    found = states(germinal)
    assert found["other"] == ("running", "")
    assert found["tiny"][0] == "running" and f"{FOLDER}/end.json: " in found["tiny"][1]
    slurm.queue()
    assert states(germinal)["tiny"][0] == "gone"
    assert germinal("follow", "tiny")[0] == 1


def test_the_queue_is_asked_once_for_all_runs(submitted, slurm, germinal) -> None:
    before = len(slurm.calls("squeue"))
    assert germinal("status")[0] == 0
    assert len(slurm.calls("squeue")) == before + 1
    slurm.fails("squeue", "no controller\n")
    assert germinal("status")[1].count("no controller") == 2
    assert len(slurm.calls("squeue")) == before + 2


@pytest.mark.parametrize("text", ["{", '{"version": 1}', "[]", DEEP, "\x00"])
def test_a_damaged_submission_is_the_reason_of_its_own_run(text, submitted, slurm, germinal) -> None:
    (FOLDER / "submission.json").write_text(text)
    found = states(germinal)
    assert found["other"] == ("running", "")
    assert found["tiny"][0] == "running" and f"{FOLDER}/submission.json: " in found["tiny"][1]
    assert germinal("cancel", "tiny")[0] == 0  # jobs.jsonl is whole
    assert slurm.calls("scancel") == [["--batch", "--signal=TERM", "101"]]


def test_a_file_that_cannot_be_read_is_the_reason_of_its_own_run(submitted, germinal, monkeypatch) -> None:
    (FOLDER / "end.json").mkdir()
    found = states(germinal)
    assert found["other"] == ("running", "")
    assert found["tiny"][0] == "unknown" and "Is a directory" in found["tiny"][1]
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    code, line = germinal.refusal("follow", "tiny")
    assert code == 1 and "Is a directory" in line


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 9, "loss": 1.0, "step_seconds": "a"},
        {"step": 9, "loss": 1.0, "tokens_per_second": []},
        {"step": 9, "loss": 1.0, "step_seconds": 1e308},
        {"step": 9, "loss": 10**400},
    ],
)
def test_wrong_values_of_a_step_are_not_known(wrong, submitted, germinal) -> None:
    append(RUN / "metrics.jsonl", {"step": 8, "loss": 2.5, "step_seconds": 0.5}, wrong)
    code, out, _ = germinal("status", "tiny")
    assert code == 0 and "9 of" in out
    append(
        RUN / "metrics.jsonl", wrong | {"step": "x"}, wrong | {"step": 10**30}, DEEP, {"step": -1, "loss": 1}
    )
    assert germinal("status", "tiny")[1] == out


@pytest.mark.parametrize(
    "printed", ["\x00\x07\udc9a|x\n", "a|b|c|d|e|f|g|h\n", "101|x1|c|d|e|f|g\n", "Welcome\n"]
)
def test_a_queue_that_prints_something_else_says_nothing(printed, submitted, slurm, germinal) -> None:
    (slurm.folder / "squeue.out").write_bytes(printed.encode(errors="surrogateescape"))
    found = states(germinal)["tiny"]
    assert found[0] == "unknown" and found[1].startswith("squeue printed no list of jobs but ")
    assert germinal.refusal("cancel", "tiny")[0] == 1
    slurm.answers("squeue", f"{printed.encode(errors='replace').decode()}101|RUNNING|None|N/A|1:00|n1|1\n")
    assert states(germinal)["tiny"] == ("running", "")


def test_what_does_not_print_is_escaped(submitted, slurm, germinal, monkeypatch) -> None:
    reason = "\x1b[2J\x9b1m\u202e[/red] :smile:"
    submission.note(FOLDER, Note(time.time(), "101", "start", reason))
    assert states(germinal)["tiny"] == ("running", reason)  # a script gets it as it is
    slurm.answers("squeue", "101|RUNNING|None|N/A|1:00|n\x1b[1m|1\n")
    monkeypatch.setattr(
        time, "sleep", lambda seconds: (slurm.queue(), (FOLDER / "end.json").write_text("{\x1b"))
    )
    for words in (["status"], ["status", "tiny"], ["status", "tiny", "--json"], ["follow", "tiny"]):
        out = germinal(*words)[1]
        assert all(c.isprintable() or c == "\n" for c in out), (words, out)
    slurm.fails("squeue", "\x1b[2Jgone\n")
    assert "\\x1b[2Jgone" in germinal.refusal("cancel", "tiny")[1]


def test_events_and_notes_are_read_from_where_the_last_look_ended(tmp_path) -> None:
    at = tmp_path / "submit/1"
    at.mkdir(parents=True)
    (at / "submission.json").touch()
    for file in (tmp_path / "events.jsonl", at / "notes.jsonl"):
        begun = progress.progress(tmp_path, None).restarts
        append(file, *[{"kind": "restart"}] * 50, {"kind": ["stop"]}, DEEP, {"kind": "requeue", "job": "1"})
        first = progress.progress(tmp_path, None).restarts
        assert first == begun + 50 + (file.name == "notes.jsonl")
        with file.open("r+") as opened:  # what was read is not read again
            opened.write("x" * 10)
            opened.seek(0, 2)
            opened.write('{"kind": "re')
        assert progress.progress(tmp_path, None).restarts == first
        append(file, 'start"}')
        assert progress.progress(tmp_path, None).restarts == first + 1
        assert progress.events(tmp_path).last(("requeue", "restart"))["kind"] == "restart"
        file.unlink()
        append(file, *[{"kind": "restart"}] * 2)
        assert progress.progress(tmp_path, None).restarts == begun + 2


def test_the_last_note_is_read_from_the_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "PART_BYTES", 50)
    assert submission.last_note(tmp_path) is None
    for number in range(9):
        submission.note(tmp_path, Note(time.time(), "1", "start", f"reason {number}"))
    append(tmp_path / "notes.jsonl", "x" * 300, '{"kind"')
    read = list(reading.newest(tmp_path / "notes.jsonl"))
    assert [line["reason"] for line in read] == [f"reason {number}" for number in range(8, -1, -1)]
    monkeypatch.setattr(lines, "records", None)  # never the whole of it
    assert submission.last_note(tmp_path).reason == "reason 8"
