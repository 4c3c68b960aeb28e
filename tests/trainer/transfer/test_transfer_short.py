"""`germinal transfer` in its short form: sequences with topics; few labels show few of the letters."""

import json
import random
from pathlib import Path

import pytest

from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from parallel.world import runtime as runtimes
from trainer.config import transferring
from trainer.transfer import command, table
from trainer.transfer.records import Records
from whole_runs import train_here

CONFIG = Path(__file__).resolve().parents[3] / "configs/transfer/sequences.yaml"
TOPICS, LETTERS, DOCUMENTS, LENGTH = 8, 80, 120, 12
SMALL = (
    *("labels=[8]", "seeds=2", "validation=16", "rates={full: [3e-3], probe: [3e-2], lora: [3e-2]}"),
    *("pretrain.model.layers=1", "pretrain.model.hidden=32", "pretrain.model.heads=2"),
    *("pretrain.model.vocab=1024", "pretrain.data.seq_len=12", "finetune.data.seq_len=12"),
    *("pretrain.train.steps=200", "pretrain.train.threads=1", "finetune.train.steps=20"),
)


def write_topics(file: Path) -> None:
    """Sequences whose letters are all of one topic's."""
    draw = random.Random(0)
    rows = []
    for number in range(TOPICS * DOCUMENTS):
        first = 0x4E00 + LETTERS * (number % TOPICS)
        text = "".join(chr(first + int(draw.random() * LETTERS)) for _ in range(LENGTH))
        rows.append(json.dumps({"text": text, "topic": f"topic-{number % TOPICS}"}) + "\n")
    file.write_text("".join(rows))


def test_pretraining_pays_with_each_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_topics(Path("topics.jsonl"))
    recipe = Recipe(label_field="topic", train_kind="characters")
    prepare(
        ["topics.jsonl"],
        Path("corpora/bytecode"),
        train_tokenizer=1024,
        recipe=recipe,
        heldout=0.2,
        workers=1,
        progress=False,
    )
    found = transferring.load(CONFIG, SMALL)
    runtime = runtimes.start()
    try:
        command.begin(found, runtime)
        assert train_here(found.pretrain_file)
        assert command.share(found, runtime, "scores", 0, 1) == 0
    finally:
        runtime.stop()
    rows = table.make(Records(found.cfg)).rows
    assert [row.method for row in rows] == ["full", "probe", "lora"]
    for row in rows:
        assert min(row.pretrained) > max(row.random), row
