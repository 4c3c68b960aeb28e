"""Logs that were deleted, cut or edited: noticed while the run writes them, and told at a resume."""

import json
import os
from pathlib import Path

import pytest

from checkpointed import FakeEngine, events, make, save
from trainer.record.digest import LogDigest
from trainer.record.shared_log import SharedLog, differences
from trainer.record.sinks import JsonlLog, step_of
from whole_runs import make_corpus, records, train_here, write_config


def write(log: JsonlLog, *steps: int) -> None:
    for step in steps:
        log.write({"step": step, "loss": 1.0 / step})


def test_only_what_was_appended_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = JsonlLog(tmp_path / "metrics.jsonl")
    digest, whole = LogDigest(log.path), LogDigest(log.path)
    assert digest.at(3)["bytes"] == 0
    for step in range(1, 30):
        write(log, step, step)
        assert digest.at(step) == LogDigest(log.path).at(step)
    size = log.path.stat().st_size
    assert digest.at(29)["bytes"] == size and not digest.lost
    assert whole.at(14)["bytes"] < size // 2 + 100, "lines of later steps do not count"
    assert whole.at(29) == digest.at(29)
    with log.path.open("ab") as file:
        file.write(b'{"step": 29, "lo')
    assert digest.at(29)["bytes"] == size, "a torn line does not count"
    read: list[bytes] = []
    monkeypatch.setattr("trainer.record.digest.step_of", lambda line: read.append(line))
    digest.at(30)
    assert len(read) == 1


def test_what_a_checkpoint_noted_is_hashed_and_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.record.digest.READ_BYTES", 100)
    log = JsonlLog(tmp_path / "metrics.jsonl")
    write(log, *range(1, 30))
    noted = LogDigest(log.path).at(20)
    parsed: list[bytes] = []
    monkeypatch.setattr("trainer.record.digest.step_of", lambda line: parsed.append(line) or step_of(line))
    digest = LogDigest(log.path)
    assert digest.resume(noted) and digest.known_bytes == noted["bytes"] and not parsed
    assert digest.at(20) == noted and len(parsed) == 1
    assert digest.at(29)["bytes"] == log.path.stat().st_size and not digest.lost
    assert not digest.resume({**noted, "bytes": noted["bytes"] - 1}) and digest.known_bytes == 0
    assert digest.at(20) == noted
    os.truncate(log.path, noted["bytes"] - 1)
    assert not digest.resume(noted)


def test_a_resume_parses_no_line_that_its_checkpoint_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path), model__layers=1, train__steps=40)
    assert train_here(config)
    parsed: list[int | None] = []
    for module in ("digest", "sinks"):
        monkeypatch.setattr(
            f"trainer.record.{module}.step_of", lambda line: parsed.append(at := step_of(line)) or at
        )
    assert train_here(config, "train.steps=41")
    assert 41 in parsed
    evaluations = 6 + 2  # every sixth step, and at each end
    # Of the noted ones the end of the metrics, for whether the last step was evaluated; and each new one.
    assert len(parsed) < 40 + evaluations + 20
    assert [line["step"] for line in records(tmp_path / "run" / "ledger.jsonl")] == list(range(1, 42))


def wreck(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "was deleted":
        path.unlink()
    elif how == "was cut or edited":
        path.write_bytes(b"".join(data.splitlines(keepends=True)[:-1]))
    else:
        path.write_bytes(data.replace(b'"step": 1', b'"step": 0', 1))


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl", "quarantine.jsonl", "events.jsonl"])
@pytest.mark.parametrize("how", ["was deleted", "was cut or edited", "was edited"])
def test_a_resume_tells_what_became_of_a_log(
    tmp_path: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = [SharedLog(tmp_path, "ledger", steps=100), SharedLog(tmp_path, "quarantine")]
    logs = [JsonlLog(tmp_path / "metrics.jsonl"), *shared]
    checkpointer = make(tmp_path, logs=logs)
    for step in (1, 2):
        for log in logs:
            write(log, step)
        save(checkpointer, FakeEngine(), step)
    assert make(tmp_path, logs=logs).resume(FakeEngine()) is not None
    assert not events(tmp_path, "fault")
    write(logs[0], 2, 3)  # an evaluation that the checkpoint did not wait for, and a step that is done again
    assert make(tmp_path, logs=logs).resume(FakeEngine()) is not None
    assert not events(tmp_path, "fault")
    if name == "events.jsonl" and how == "was cut or edited":
        (tmp_path / name).write_bytes(b"")
    else:
        wreck(tmp_path / name, how)
    if name == "metrics.jsonl" and how == "was cut or edited":
        wreck(tmp_path / name, how)
        wreck(tmp_path / name, how)
    state = make(tmp_path, logs=logs).resume(FakeEngine())
    assert state is not None and state.step == 2
    (told,) = events(tmp_path, "fault")
    assert told["reason"].startswith(f"{tmp_path / name} {how} since the checkpoint of step 2")
    assert told["reason"] in capsys.readouterr().err


@pytest.mark.parametrize("how", ["deleted", "replaced", "cut"])
def test_a_log_that_vanishes_during_the_run_is_an_event_and_is_made_anew(tmp_path: Path, how: str) -> None:
    log = SharedLog(tmp_path, "ledger")
    checkpointer, engine = make(tmp_path, logs=[log]), FakeEngine()
    write(log, 1)
    save(checkpointer, engine, 1)
    if how == "deleted":
        log.path.unlink()
    elif how == "replaced":
        (tmp_path / "other").write_bytes(log.path.read_bytes())
        os.replace(tmp_path / "other", log.path)
    else:
        os.truncate(log.path, 0)
    write(log, 2)
    save(checkpointer, engine, 2)
    (told,) = events(tmp_path, "fault")
    assert (
        told["step"] == 2
        and "ledger.jsonl was deleted, replaced or cut while the run wrote" in told["reason"]
    )
    write(log, 3)
    save(checkpointer, engine, 3)
    assert len(events(tmp_path, "fault")) == 1, "told once"
    assert json.loads(log.path.read_bytes().splitlines()[-1])["step"] == 3
    assert make(tmp_path, logs=[log]).resume(engine) is not None
    assert len(events(tmp_path, "fault")) == 1, "what is there now is what the checkpoint counts"


def test_a_checkpoint_that_notes_no_logs_says_nothing(tmp_path: Path) -> None:
    assert differences({}, {"metrics.jsonl": LogDigest(tmp_path / "metrics.jsonl")}, 3) == []
