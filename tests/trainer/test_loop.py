"""Whole runs in this process: stopped in the middle of an evaluation, or gone on with by another config."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.exit_codes import FAILED
from common.mapped_file import map_file
from data.corpus.manifest import read_manifest, write_manifest
from data.corpus.tar import samples
from data.stream.heldout import HeldoutLoader
from parallel.world import runtime as runtimes
from trainer import decide
from trainer.__main__ import main
from trainer.config import reading
from trainer.evaluation import evaluate
from trainer.run import assemble
from whole_runs import TIMES, events, make_corpus, records, write_config


def go(config: Path, *overrides: str, stop_at_evaluation: int = 0) -> bool:
    """One start of the run; `stop_at_evaluation` raises the flag at the second batch of that evaluation."""
    cfg = reading.load(config, overrides)
    with ExitStack() as stack:
        runtime = runtimes.start(env={"OMP_NUM_THREADS": "1"})
        run = assemble(cfg, runtime, stack)
        seen = 0
        read = HeldoutLoader.__iter__

        def counted(self: HeldoutLoader) -> Iterator[Any]:
            nonlocal seen
            seen += 1
            for number, batch in enumerate(read(self)):
                runtime.stopping |= number == 1 and seen == stop_at_evaluation
                yield batch

        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(HeldoutLoader, "__iter__", counted)
        patch.setattr(evaluate, "BATCHES", 1)
        return run()


def record(folder: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize(
    "evaluation", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["in the middle", "after the last step"]
)
def test_a_stop_during_an_evaluation_leaves_no_trace(tmp_path: Path, evaluation: int) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path, documents=200), train__steps=6, train__eval_every=3)
    assert go(config, f"run_dir={tmp_path}/straight")
    assert not go(config, f"run_dir={tmp_path}/stopped", stop_at_evaluation=evaluation), (
        "it was asked to stop"
    )
    stopped = record(tmp_path / "stopped")
    assert "eval" not in stopped[-1] and stopped[-1]["step"] == 3 * evaluation
    assert go(config, f"run_dir={tmp_path}/stopped")
    assert record(tmp_path / "stopped") == record(tmp_path / "straight")
    assert go(config, f"run_dir={tmp_path}/stopped"), "nothing is left to do"
    assert record(tmp_path / "stopped") == record(tmp_path / "straight")


@pytest.mark.parametrize("other", [{"sha256": "0" * 64}, {"eos": 1}], ids=["file", "separator"])
def test_a_held_out_set_of_another_tokenizer_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    corpus = make_corpus(tmp_path)
    made = read_manifest(corpus / "heldout")
    write_manifest(corpus / "heldout", replace(made, tokenizer=replace(made.tokenizer, **other)))
    with pytest.raises(ValueError, match=r"^data\.heldout\[0\]\.path: .*heldout and .*train .*--tokenizer$"):
        go(write_config(tmp_path, corpus, model__layers=1))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_refused_config_does_not_take_the_place_of_the_runs_own(tmp_path: Path) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path), train__steps=2, train__eval_every=0)
    assert go(config)
    evaluated = [line["step"] for line in records(tmp_path / "run" / "metrics.jsonl") if "eval" in line]
    assert evaluated == [2], "at the end, wherever there is a held-out set"
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"data\.seq_len is 16, but .* was saved with 32"):
        go(config, "data.seq_len=16", "train.steps=4")
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    assert go(config, "train.steps=4")
    assert (tmp_path / "run" / "config.yaml").read_text() != before


def test_data_may_be_used_to_its_end_and_more_is_refused_at_the_start(tmp_path: Path) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path, documents=20), train__eval_every=0, model__layers=1)
    source = f"data.sources=[{{path: {tmp_path}/corpus/train, max_epochs: 0.2}}]"  # 66 sequences
    with pytest.raises(ValueError, match=r"train\.steps=9: .*max_epochs gives 66 sequences.* step 8 of"):
        go(config, source, "train.steps=9")
    assert not (tmp_path / "run").exists()
    assert go(config, source, "train.steps=4")
    longer = (source, "train.global_batch=6")  # from sequence 32 on
    with pytest.raises(ValueError, match=r"train\.steps=10: .*max_epochs.* step 9 of train\.global_batch=6"):
        go(config, *longer, "train.steps=10")
    assert go(config, *longer, "train.steps=9")
    assert go(config, *longer, "train.steps=9"), "nothing is left to do"


def test_a_stage_begins_at_its_step_or_the_run_is_refused(tmp_path: Path) -> None:
    """Whether it is still to come or behind; and for a run that had several global batches before."""
    corpus = make_corpus(tmp_path, documents=30)
    sources = [{"path": str(corpus / side), "name": side} for side in ("train", "heldout")]
    changes = {"train__eval_every": 0, "model__layers": 1, "data__sources": sources, "data__heldout": []}
    config = write_config(tmp_path, corpus, **changes, checkpoint__every=2)
    stage = "data.stages=[{from_step: 6, weights: {heldout: 3.0}}]"
    named = r"^train\.global_batch is 4, but the \d steps .* read \d+ sequences: data\.stages \(from_step 6\)"
    for steps in (4, 8):
        assert go(config, stage, f"train.steps={steps}")
        with pytest.raises(ValueError, match=rf"{named} .*: set it back to 8, or"):
            go(config, stage, "train.steps=12", "train.global_batch=4")
    plain = f"run_dir={tmp_path}/plain"
    assert go(config, plain, "train.steps=2")
    assert go(config, plain, "train.steps=4", "train.global_batch=4"), "without stages it may change"
    with pytest.raises(ValueError, match=rf"{named} .*: leave data\.stages out, or"):
        go(config, plain, stage, "train.steps=12", "train.global_batch=4")


def test_a_heldout_set_that_is_trained_on_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path, documents=30)
    heldout = [{"path": str(corpus / side), "name": f"of {side}"} for side in ("heldout", "train")]
    assert go(write_config(tmp_path, corpus, data__heldout=heldout, model__layers=1, train__steps=1))
    (told,) = events(tmp_path / "run", "heldout")
    assert told["reason"].startswith(
        f"held-out of train is the corpus of the source {corpus}/train: the model"
    )
    assert told["reason"] in capsys.readouterr().err


def ruin(corpus: Path) -> None:
    """Flip a bit in every document of a corpus."""
    shard = corpus / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    for sample in samples(map_file(shard), str(shard)):
        member = sample.members["npy"]
        data[member.offset + member.size - 1] ^= 0x04
    shard.write_bytes(data)


@pytest.mark.parametrize(("steps", "after"), [(2, 2), (50, 3)], ids=["to the end", "not to the end"])
def test_a_run_that_finds_nothing_to_train_on_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, after: int
) -> None:
    monkeypatch.setattr(decide, "MOST_EMPTY_STEPS", 3)
    corpus = make_corpus(tmp_path, documents=20)
    changes = {"train__steps": steps, "train__eval_every": 0, "checkpoint__every": 0, "model__layers": 1}
    config = write_config(tmp_path, corpus, data__on_corrupt="quarantine", **changes)
    ruin(corpus / "train")
    assert main([str(config)]) == FAILED
    (fault,) = events(tmp_path / "run", "fault")
    assert fault["step"] == after and f"no target was counted in {after} steps" in fault["reason"]
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*")), "nothing was learnt to be kept"
