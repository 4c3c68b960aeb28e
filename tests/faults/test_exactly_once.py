"""Law 5 over the data: a run killed again and again, each time on another number of ranks, reads 0…N once
each; and what is quarantined is listed once.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from common.mapped_file import map_file
from data.config import DataConfig, MixtureStage, Source
from data.corpus.tar import samples
from data.stream.stream import Stream
from whole_runs import (
    GERMINAL,
    consumed,
    events,
    germinal,
    kill_when,
    make_corpus,
    records,
    train,
    train_here,
    whole_steps,
    write_config,
)

STEPS, BATCH = 40, 8
CHANGE = 6  # the step after which the weights change


def two_corpora(folder: Path) -> tuple[Path, Path]:
    """A small one, of which the run takes several passes, and one of twice its size."""
    for name in ("a", "b"):
        (folder / name).mkdir()
    return make_corpus(folder / "a", documents=10), make_corpus(folder / "b", documents=24, seed=1)


def mixed(corpora: tuple[Path, Path], later: dict[str, float]) -> DataConfig:
    """Two sources, 3 : 1 at first; new weights from step CHANGE on, and `later`'s from step 30 on."""
    sources = [Source(str(corpora[0] / "train"), 3.0, "a"), Source(str(corpora[1] / "train"), 1.0, "b")]
    stages = [MixtureStage(CHANGE, {"a": 1.0, "b": 1.0}), MixtureStage(30, later)]
    return DataConfig(sources=sources, stages=stages, seq_len=32, ledger=True)


def overrides(cfg: DataConfig) -> dict[str, Any]:
    return {
        "data__sources": [{"path": s.path, "weight": s.weight, "name": s.name} for s in cfg.sources],
        "data__stages": [{"from_step": s.from_step, "weights": s.weights} for s in cfg.stages],
        "data__heldout": [],
        "model__layers": 1,
        "train__steps": STEPS,
        "train__eval_every": 0,
        "checkpoint__every": 3,
        "checkpoint__async": False,  # saved when the next step is logged, however busy the machine
    }


@pytest.mark.parametrize(
    "sizes",  # ranks of each start that is killed; the last one runs to the end
    [(2, 1, 2), pytest.param((1, 2, 4, 2, 4), marks=pytest.mark.slow)],
    ids=["three-kills", "five-kills"],
)
def test_every_sequence_once_through_kills_on_other_sizes_and_a_weight_change(
    sizes: tuple[int, ...], tmp_path: Path
) -> None:
    corpora = two_corpora(tmp_path)
    before, after = mixed(corpora, {"a": 0.0, "b": 1.0}), mixed(corpora, {"a": 1.0, "b": 4.0})
    run = tmp_path / "run"
    metrics = run / "metrics.jsonl"
    draw = random.Random(11)
    under_before = (len(sizes) + 1) // 2
    for start, nproc in enumerate(sizes):
        # Past the middle of the starts, the weights of a stage that has not come change.
        config = write_config(tmp_path, corpora[0], **overrides(before if start < under_before else after))
        # Far enough that each start saves, and never so far that stage 30 has come before it is changed.
        at = whole_steps(metrics) + draw.randrange(4, 7)
        kill_when(
            [GERMINAL, "train", config, "--nproc", nproc, f"train.micro_batch={8 // nproc}"],
            lambda at=at: whole_steps(metrics) >= at,
        )
        if start == under_before - 1:
            assert CHANGE < whole_steps(metrics) < 30, "the change lies behind, the stage to come does not"
    assert train_here(config)

    assert consumed(run) == list(range(STEPS * BATCH)), "each sequence once"
    ledger = records(run / "ledger.jsonl")
    for step in range(1, STEPS + 1):
        read = sorted(n for line in ledger if line["step"] == step for n in line["sequences"])
        assert read == list(range((step - 1) * BATCH, step * BATCH)), step
    started = [(event["step"], event["ranks"]) for event in events(run, "start")]
    assert [ranks for _, ranks in started] == [*sizes, 1]
    steps = [step for step, _ in started]
    assert steps == sorted(steps) and len(set(steps)) >= max(3, len(sizes) - 1), (
        "they went on from one another"
    )
    # What was consumed is what the last config says, though a part ran under the first.
    streams = [Stream.open(cfg, seed=0, global_batch=BATCH) for cfg in (before, after)]
    counts = [stream.mixture.counts(STEPS * BATCH) for stream in streams]
    assert [stream.mixture.counts(30 * BATCH) for stream in streams] == 2 * [
        streams[0].mixture.counts(30 * BATCH)
    ]
    assert counts[0] != counts[1]
    assert counts[1][0] > streams[1].sequences_per_epoch["a"], (counts, streams[1].sequences_per_epoch)
    # And the curve is the one of a run that nobody touched.
    (tmp_path / "whole").mkdir()
    assert train_here(write_config(tmp_path / "whole", corpora[0], **overrides(after)))
    for line, expected in zip(records(metrics), records(tmp_path / "whole" / "run" / "metrics.jsonl")):
        assert line["step"] == expected["step"]
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5), line["step"]


def damage(corpus: Path, place: int) -> tuple[str, str, int]:
    """Flips a bit of the ids of one document; its (shard, sample, first byte of the ids)."""
    shard = next((corpus / "train").glob("*.tar"))
    sample = list(samples(map_file(shard), str(shard)))[place]
    data = bytearray(shard.read_bytes())
    offset = sample.members["npy"].offset
    begin = data.index(b"\n", data.index(b"NUMPY", offset)) + 1
    data[begin + 10] ^= 0x04
    shard.write_bytes(data)
    return str(shard), sample.key, begin


@pytest.mark.slow
def test_a_damaged_document_is_masked_and_listed_once(tmp_path: Path) -> None:
    """On two ranks, killed and resumed; compared with the run that the same corpus gave undamaged."""
    (tmp_path / "clean").mkdir()
    (tmp_path / "bad").mkdir()
    corpus = make_corpus(tmp_path, documents=24)
    # A learning rate below every weight's last bit: a step's loss depends on its own sequences only.
    settings = {"optim__lr": 1e-30, "optim__weight_decay": 0.0, "data__on_corrupt": "quarantine"}
    settings |= {"data__heldout": [], "train__eval_every": 0, "train__steps": 24}
    settings |= {"checkpoint__every": 5, "model__layers": 1}
    train(write_config(tmp_path / "clean", corpus, **settings), nproc=2)
    assert not (tmp_path / "clean" / "run" / "quarantine.jsonl").exists()

    shard, sample, offset = damage(corpus, 3)
    run = tmp_path / "bad" / "run"
    config = write_config(tmp_path / "bad", corpus, **settings)
    kill_when([GERMINAL, "train", config, "--nproc", 2], lambda: whole_steps(run / "metrics.jsonl") >= 17)
    assert records(run / "quarantine.jsonl"), "some of it before the kill"
    train(config, nproc=2)

    listed = records(run / "quarantine.jsonl")
    cfg = DataConfig([Source(str(corpus / "train"))], seq_len=32, on_corrupt="quarantine")
    stream = Stream.open(cfg, seed=0, global_batch=BATCH)
    stream.read(range(24 * BATCH))
    assert sorted(line["sequence"] for line in listed) == sorted(stream.quarantined), (
        "each once, none missing"
    )
    for line in listed:
        assert line["step"] == line["sequence"] // BATCH + 1
        assert (line["shard"], line["sample"], line["offset"]) == (shard, sample, offset)
    assert len({line["sequence"] % BATCH // 4 for line in listed}) == 2, "entries of both ranks arrive"
    assert {event["sample"] for event in events(run, "quarantine")} == {sample}

    clean, bad = (
        {line["step"]: line for line in records(tmp_path / name / "run" / "metrics.jsonl")}
        for name in ("clean", "bad")
    )
    hit = {line["step"] for line in listed}
    assert 0 < len(hit) < 24
    for step in range(1, 25):
        same = bad[step]["loss"] == clean[step]["loss"] and bad[step]["grad_norm"] == clean[step]["grad_norm"]
        assert same == (step not in hit), step
    ledgers = [records(tmp_path / name / "run" / "ledger.jsonl") for name in ("clean", "bad")]
    assert sorted(map(json.dumps, ledgers[0])) == sorted(map(json.dumps, ledgers[1]))

    traced = germinal("data", "inspect", run, "--sequence", listed[0]["sequence"], "--json")
    assert traced.returncode == 0, traced.stderr
    found = json.loads(traced.stdout)
    assert found["quarantined"] and found["quarantined"][0]["sample"] == sample
