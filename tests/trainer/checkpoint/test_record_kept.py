"""What stood in a run folder before a start, and the start must not erase or stumble over."""

import json
import shutil
from pathlib import Path

import pytest

from checkpointed import FakeEngine, events, make, save
from trainer.record.sinks import JsonlLog, drop_torn_tail, truncate_after
from whole_runs import make_corpus, records, train_here, write_config


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path, make_corpus(tmp_path), model__layers=1, train__eval_every=0, train__steps=4
    )
    run = tmp_path / "run"
    assert train_here(config, "checkpoint.every=2")
    kept = [(run / name).read_bytes() for name in ("metrics.jsonl", "ledger.jsonl")]
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"checkpoints holds no checkpoint, .* step 4: put .* back .*name"
        ):
            train_here(config, "checkpoint.every=2")
        assert [(run / name).read_bytes() for name in ("metrics.jsonl", "ledger.jsonl")] == kept
    (run / "checkpoints").rmdir()
    (tmp_path / "elsewhere").rename(run / "checkpoints")
    shutil.rmtree(run / "checkpoints" / "step-000000004")
    capsys.readouterr()
    assert train_here(config, "checkpoint.every=4")
    told = [event for event in records(run / "events.jsonl") if event["kind"] == "config"]
    assert [(event["step"], event["reason"]) for event in told] == [
        (2, "not as it was: checkpoint.every 2 → 4")
    ]
    assert "rewind at step 2: metrics.jsonl: dropped 3 lines" in capsys.readouterr().err
    logged = [line["step"] for line in records(run / "metrics.jsonl") if "loss" in line]
    assert logged == [1, 2, 3, 4]


def test_drafts_of_a_killed_start_are_gone_after_the_next(tmp_path: Path) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path, documents=20), model__layers=1, train__eval_every=0)
    train_here(config, "train.steps=1")
    drafts = [tmp_path / "run" / at for at in (".tmp-config.yaml-7", "configs/.tmp-step-000000000.yaml-7")]
    for draft in drafts:
        draft.write_text("name: ru")
    train_here(config, "train.steps=1")
    assert not any(draft.exists() for draft in drafts)


def test_a_config_that_was_edited_to_nothing_is_written_anew(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, documents=20)
    config = write_config(tmp_path, corpus, model__layers=1, train__eval_every=0)
    train_here(config, "train.steps=1")
    own = tmp_path / "run" / "config.yaml"
    own.write_text("train: [1, 2")
    train_here(config, "train.steps=2")
    assert "steps: 2" in own.read_text()
    (told,) = events(tmp_path / "run", "config")
    assert told["reason"] == "not as it was: config.yaml, which was not YAML any more"


def test_what_was_saved_before_an_anew_start_is_given_up(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.events.event("start", 0, "new run")
    assert make(tmp_path).resume(FakeEngine()) is None, "killed before its first checkpoint"
    save(first, FakeEngine(), 1)
    first.events.event("start", 0, "new run")
    shutil.rmtree(tmp_path / "checkpoints")
    assert make(tmp_path).resume(FakeEngine()) is None
    assert len(events(tmp_path, "save")) == 1


@pytest.mark.parametrize("tail", ["", '{"kind": "sa', '{"step": 3}', "x" * 100_000])
def test_a_torn_last_line_does_not_take_the_next_with_it(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "events.jsonl"
    assert drop_torn_tail(path) == 0 and not path.exists()
    path.write_text('{"step": 1}\n{"step": 2}\n' + tail)
    whole = [1, 2, 3] if tail.endswith("}") else [1, 2]
    assert drop_torn_tail(path) == (0 if tail.endswith("}") else len(tail))
    JsonlLog(path).write({"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*whole, 4]


def test_a_log_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "m.jsonl", tmp_path / "metrics.jsonl"
    real.write_text('{"step": 1}\n{"step": 2}\n')
    link.symlink_to(real)
    assert truncate_after(link, 1) == (1, 0)
    assert link.is_symlink() and real.read_text() == '{"step": 1}\n'


def test_what_is_in_the_way_of_the_record_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path, documents=20), model__layers=1, train__steps=2)
    run = tmp_path / "run"
    (run / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"run/metrics\.jsonl is a folder, .*: move it away"):
        train_here(config)
    (run / "metrics.jsonl").rmdir()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-000000002").touch()
    with pytest.raises(RuntimeError, match=r"checkpoints/step-000000002 is a file, .*: move it away"):
        train_here(config)
    (run / "checkpoints" / "step-000000002").unlink()
    with (run / "events.jsonl").open("a") as file:
        file.write('{"step": 7, "ki')
    assert train_here(config, "train.eval_every=0")
    kinds = [event["kind"] for event in records(run / "events.jsonl")]
    assert kinds[:2] == ["clean", "start"] and "save" in kinds
