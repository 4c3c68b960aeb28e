"""A model of texts by classes whose head begins with BERT's pooler takes the one that was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.config import DataConfig, Source
from parallel.engine import Chunk
from stock_models import stock
from trained_runs import drawn, make_trained_run
from trainer.config import first_keys
from trainer.config.run_config import RunConfig
from trainer.first_weights.fill import fill, matched
from trainer.first_weights.match import Match
from trainer.first_weights.open import open_source
from trainer.models.encoder.config import EncoderConfig
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.objectives.masked.config import MaskedLMConfig
from trainer.ranks import Ranks

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}
HEAD = {"head_layer": "tanh", "pool": "first"}
POOLER = ("head.transform.dense.bias", "head.transform.dense.weight")
PROJECT = ("head.project.bias", "head.project.weight")


def begun(folder: Path, **keys: Any) -> tuple[dict[str, Tensor], Match]:
    """The parameters of a model of classes that begins from a folder, and what became of each."""
    given = {"kind": "text_classes", "init_from": str(folder), "classes": 3, **keys}
    model = TextClassesConfig(**first_keys.fill(given))
    cfg = RunConfig(name="tuned", model=model, data=DataConfig([Source("none")], seq_len=16))
    own = {name: one.detach() for name, one in drawn(model).named_parameters()}
    chunks = [Chunk(f"model.{n}", t, tuple(t.shape), (0,) * t.ndim, owned=True) for n, t in own.items()]
    source = open_source(str(folder))
    found = matched(chunks, source, cfg, Ranks())
    fill(chunks, source, found)
    return own, found


def folder_of(path: Path, cls: str, architecture: str = "") -> Path:
    stock(cls, "BertConfig", SIZES).save_pretrained(path)  # type: ignore[operator]
    if architecture:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    return path


@pytest.mark.parametrize(("cls", "architecture"), [
    ("BertForPreTraining", ""),
    ("BertForPreTraining", "BertForMaskedLM"),  # as bert-base-uncased was published
    ("BertModel", ""),
])  # fmt: skip
def test_the_pooler_of_a_folder_is_the_one_that_transformers_takes(
    cls: str, architecture: str, tmp_path: Path
) -> None:
    from transformers import BertForSequenceClassification

    folder = folder_of(tmp_path / "stock", cls, architecture)
    own, found = begun(folder, **HEAD)
    theirs = BertForSequenceClassification.from_pretrained(folder, num_labels=3).bert.pooler.dense
    assert torch.equal(own["head.transform.dense.weight"], theirs.weight)
    assert torch.equal(own["head.transform.dense.bias"], theirs.bias)
    assert found.drawn == PROJECT and not any("pooler" in name for name in found.dropped)
    assert "head.transform.dense.weight from next_sentence.pooler.weight" in found.in_words()


def test_the_pooler_of_a_run_is_taken(tmp_path: Path) -> None:
    model = EncoderConfig(layers=2, hidden=32, heads=4, vocab=257, biases=True, next_sentence=True)
    objective = MaskedLMConfig(next_sentence=True)
    data = {"packing": "one", "partners": True}
    theirs = make_trained_run(tmp_path / "run", model=model, objective=objective, data=data)
    own, found = begun(tmp_path / "run", **HEAD)
    weights = dict(theirs.named_parameters())
    assert torch.equal(own["head.transform.dense.weight"], weights["next_sentence.pooler.weight"])
    assert found.drawn == PROJECT


@pytest.mark.parametrize("keys", [{**HEAD, "pool": "mean"}, {**HEAD, "head_layer": "gelu"}])
def test_another_head_takes_no_pooler(keys: dict[str, str], tmp_path: Path) -> None:
    _, found = begun(folder_of(tmp_path / "stock", "BertForPreTraining"), **keys)
    assert set(found.drawn) >= {*POOLER, *PROJECT}


def test_where_there_is_no_pooler_it_is_drawn(tmp_path: Path) -> None:
    """The layer of BERT's head for masked tokens has its name and its shape, and another use."""
    _, found = begun(folder_of(tmp_path / "stock", "BertForMaskedLM"), **HEAD)
    assert found.drawn == (*PROJECT, *POOLER)
