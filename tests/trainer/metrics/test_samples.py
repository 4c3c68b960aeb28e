"""Samples beside a run: of its checkpoints, in its folder, and of no consequence for it."""

import json
from pathlib import Path

import pytest

from whole_runs import events, germinal, make_corpus, records, train, write_config

PROMPTS = ["the model", ""]


@pytest.mark.slow  # two whole runs, and a process a checkpoint
def test_checkpoints_continue_the_prompts_and_the_run_is_the_same(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    lines = {}
    for name, prompts in (("with", PROMPTS), ("without", [])):
        (tmp_path / name).mkdir()
        changes = {"track__samples": prompts, "track__sample_tokens": 8, "checkpoint__every": 6}
        config = write_config(tmp_path / name, corpus, **changes)
        train(config, "parallel.tp=2", nproc=2)
        lines[name] = records(tmp_path / name / "run" / "metrics.jsonl")
    assert lines["with"] == lines["without"]
    run = tmp_path / "with" / "run"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in samples] == PROMPTS * (len(samples) // 2)
    assert samples[-1]["step"] == 12 and all(sample["step"] % 6 == 0 for sample in samples)
    assert not (tmp_path / "without" / "run" / "samples.jsonl").exists()
    told = germinal("generate", str(run), "--prompt", "the model", "--max-tokens", "8")
    assert told.stdout.rstrip("\n") == "the model" + samples[-2]["text"]


def test_a_checkpoint_that_cannot_be_sampled_is_an_event(tmp_path: Path) -> None:
    from trainer.metrics.samples import Samples
    from trainer.record.events import EventLog
    from trainer.record.sinks import JsonlLog

    (tmp_path / "checkpoints").mkdir()
    log, told = JsonlLog(tmp_path / "samples.jsonl"), EventLog(tmp_path / "events.jsonl", shown=False)
    samples = Samples(tmp_path, ["a"], 4, log, told)
    (tmp_path / "checkpoints" / "step-000000003").mkdir()
    samples.finish(print)
    (event,) = events(tmp_path, "sample")
    assert event["step"] == 3 and "config" in event["reason"] and "\n" not in event["reason"]
    assert not (tmp_path / "samples.jsonl").exists()
