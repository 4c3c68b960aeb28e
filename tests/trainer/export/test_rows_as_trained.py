"""A text put into an exported folder's tokenizer gives the row that training and evaluation have of it."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tokenizers_round_trip import KINDS

from data.config import DataConfig, Source
from data.corpus.manifest import read_manifest
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.stream.stream import Stream
from data.tokenizer import loading
from parallel.world.runtime import Runtime
from trained_runs import make_trained_run
from trainer.evaluate.labelled import Outputs, read_set
from trainer.evaluate.sets import open_set
from trainer.export.export import export
from trainer.models.config import ModelConfig
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.encoder.token_classes_config import TokenClassesConfig
from trainer.models.towers.text_pair_config import TextPairConfig
from trainer.objectives.build import build_objective
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.contrastive_config import ContrastiveConfig
from trainer.objectives.marked.config import AnswersConfig
from trainer.objectives.picture_config import ClassificationConfig
from trainer.state import Identity
from trainer.trained.on_ranks import open_run

SEQ = 32
TEXTS = ("Two words", "the naïve café читает 中文", "x = f(1) !", "a much longer text " * 20)
CLASSES = [str(number) for number in range(len(TEXTS))]
ASKED = (
    {
        "question": "Who reads?",
        "context": "The model reads",
        "answers": {"text": ["model"], "answer_start": [4]},
    },
    {"question": "What is 中?", "context": "nothing at all", "answers": {"text": [], "answer_start": []}},
)
# What folders of models say of their tokenizers: classes of transformers with templates of their own.
SETTINGS: dict[str, dict[str, Any]] = {
    "bpe": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False, "eos_token": "<|im_end|>"},
    "unigram": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>",
                "eos_token": "</s>", "unk_token": "<unk>"},
    "wordpiece": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "cls_token": "[CLS]",
                  "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
}  # fmt: skip
BLOCKS: dict[str, Any] = {
    "layers": 2,
    "hidden": 32,
    "heads": 4,
    "window": 0,
    "norm_place": "post",
    "positions": "learned",
    "max_positions": SEQ,
    "token_types": 2,
    "norm_eps": 1e-12,
    "activation": "gelu",
    "biases": True,
}


def prepared(folder: Path, kind: str, lines: Sequence[Any], recipe: Recipe) -> Path:
    """A corpus that was made with the tokenizer of a Hugging Face folder."""
    (folder / "given").mkdir()
    made = KINDS[kind]()
    if kind == "bpe":  # of conversations: its eos_token is not what stands between documents
        made.add_special_tokens(["<|im_end|>"])
    made.save(str(folder / "given" / "tokenizer.json"))
    (folder / "given" / "config.json").write_text("{}")
    (folder / "given" / "tokenizer_config.json").write_text(json.dumps(SETTINGS[kind]))
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(
        [str(source)], folder / "corpus", tokenizer=folder / "given", workers=1, progress=False, recipe=recipe
    )
    return folder / "corpus"


def rows(corpus: Path, packing: Any) -> list[list[int]]:
    """The ids of each row of the corpus as training has them, without padding."""
    stream = Stream.open(
        DataConfig([Source(str(corpus))], packing=packing, seq_len=SEQ), seed=0, global_batch=1
    )
    made = stream.read(range(sum(stream.sequences_per_epoch.values())))
    found = zip(made.tokens.tolist(), made.length.ravel().tolist(), strict=True)
    return sorted(ids[:length] for ids, length in found)


def exported(
    folder: Path, corpus: Path, kind: type[Any], objective: ObjectiveConfig, packing: str, **keys: Any
) -> Path:
    """A run on the corpus, folder/run, and what `germinal export` makes of it."""
    content = (corpus / "tokenizer.json").read_bytes()
    manifest = read_manifest(corpus)
    about = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "eos": manifest.tokenizer.eos,
        "template": manifest.has_template,
    }
    model: ModelConfig = kind(
        **BLOCKS, vocab=loading.vocab_size(loading.load(corpus / "tokenizer.json")), **keys
    )
    make_trained_run(
        folder / "run",
        model=model,
        objective=objective,
        data={"sources": [Source(path=str(corpus))], "packing": packing, "seq_len": SEQ},
        tokenizer=content,
        identity=Identity(tokenizer=about, classes=list(manifest.classes)).to_json(),
    )
    export(folder / "run", folder / "out", step=None, dtype="fp32", shard_bytes=10**9)
    return folder / "out"


def evaluated(run: Path, corpus: Path) -> dict[int, list[float]]:
    """The number of each text → its logits, as `germinal evaluate RUN` reads them for the calibration."""
    alone = Runtime(0, 1, 0, torch.device("cpu"))
    with ExitStack() as stack:
        trained = open_run(run, ["objective.kind=classification"], alone, stack)
        heldout = open_set(trained, "texts", str(corpus))
        names = heldout.corpus.manifest.classes
        wanted = Outputs(build_objective(trained.cfg.objective, trained.context), len(TEXTS))
        logits, labels = read_set(trained, heldout, wanted)
        return {int(names[label]): row for label, row in zip(labels, logits.tolist(), strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_gives_the_logits_of_an_evaluation(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, pipeline

    lines = [{"text": text, "label": name} for text, name in zip(TEXTS, CLASSES, strict=True)]
    corpus = prepared(tmp_path, kind, lines, Recipe(label_field="label"))
    keys = {"classes": len(TEXTS), "pool": "first", "head_layer": "tanh"}
    out = exported(tmp_path, corpus, TextClassesConfig, ClassificationConfig(), "one", **keys)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert sorted(tokenizer(list(TEXTS), truncation=True)["input_ids"]) == rows(corpus, "one")
    asked = pipeline("text-classification", model=str(out), top_k=None, function_to_apply="none")
    given = asked(list(TEXTS), truncation=True)
    found = [{one["label"]: one["score"] for one in scores} for scores in given]
    names = read_manifest(corpus).classes
    for run in (tmp_path / "run", out):
        logits = evaluated(run, corpus)
        assert len(logits) == len(found)
        for number, row in logits.items():
            assert [found[number][name] for name in names] == pytest.approx(row, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(logits[0], logits[1], strict=True)) > 1e-3

    again = tmp_path / "again"
    recipe = Recipe(label_field="label")
    prepare([str(tmp_path / "rows.jsonl")], again, tokenizer=out, workers=1, progress=False, recipe=recipe)
    assert rows(again, "one") == rows(corpus, "one"), "the template's separator is not doubled"


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_and_its_context_are_the_row_that_was_trained_on(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    corpus = prepared(tmp_path, kind, ASKED, Recipe(task="answers", window_tokens=512))
    out = exported(tmp_path, corpus, TokenClassesConfig, AnswersConfig(), "marked", classes=2)
    tokenizer = AutoTokenizer.from_pretrained(out)
    found = [tokenizer(one["question"], one["context"], return_token_type_ids=True) for one in ASKED]
    assert sorted(list(one["input_ids"])[:SEQ] for one in found) == rows(corpus, "marked")
    assert all(set(one["token_type_ids"]) == {0} for one in found)


def test_a_text_whose_embedding_is_asked_for_is_a_half_of_a_row_of_pairs(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    lines = [{"text": TEXTS[0], "second": TEXTS[2]}]
    corpus = prepared(tmp_path, "wordpiece", lines, Recipe(second_field="second"))
    out = exported(tmp_path, corpus, TextPairConfig, ContrastiveConfig(), "pair", embedding=0)
    (row,) = (
        Stream.open(DataConfig([Source(str(corpus))], packing="pair", seq_len=SEQ), seed=0, global_batch=1)
        .read(range(1))
        .tokens.reshape(1, 2, -1)
        .tolist()
    )
    for text, half in zip((TEXTS[0], TEXTS[2]), row, strict=True):
        ids = AutoTokenizer.from_pretrained(out)(text)["input_ids"]
        assert half[: len(ids)] == ids and set(half[len(ids) :]) <= {ids[0]}
