"""What changes the ids of a text is found between two tokenizers; what does not, is not told."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, trainers

from data.tokenizer import training
from data.tokenizer.comparison import difference

TEXTS = ["the model reads the shards", "every rank writes its own words"] * 9


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=60, show_progress=False))
    return made


KINDS = {
    "bpe": lambda: training.train("bpe", TEXTS, 300),
    "wordpiece": lambda: training.train("wordpiece", TEXTS, 300),
    "unigram": unigram,
}


def changed(kind: str, *path: Any, to: Any) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer, and the same with another value in its tokenizer.json."""
    made = KINDS[kind]()
    settings = inner = json.loads(made.to_str())
    for key in path[:-1]:
        inner = inner[key]
    assert inner[path[-1]] != to
    inner[path[-1]] = to
    return made, Tokenizer.from_str(json.dumps(settings))


@pytest.mark.parametrize(("kind", "path", "to", "message"), [
    ("bpe", ("normalizer",), {"type": "NFKC"}, "has another normalizer than ours"),
    ("bpe", ("pre_tokenizer", "use_regex"), False, "has another pre_tokenizer than ours"),
    ("bpe", ("model", "merges", 0), ["a", "b"], "has another model.merges than ours"),
    ("bpe", ("model", "ignore_merges"), True, "has another model.ignore_merges than ours"),
    ("wordpiece", ("model", "continuing_subword_prefix"), "@@",
     "has another model.continuing_subword_prefix than ours"),
    ("unigram", ("model", "vocab", 9, 1), -1.0, "has another model.vocab than ours"),
    ("bpe", ("added_tokens", 0, "lstrip"), True,
     "finds the token '<|endoftext|>' in other places of a text than ours"),
    ("bpe", ("post_processor",), {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                  "use_regex": True}, ""),
    ("bpe", ("decoder",), None, ""),
    ("bpe", ("added_tokens", 0, "special"), False, ""),
])  # fmt: skip
def test_what_changes_ids_is_named(kind: str, path: Any, to: Any, message: str) -> None:
    if path[:2] == ("model", "merges"):  # both tokens and their union are in the vocabulary
        vocabulary = json.loads(KINDS[kind]().to_str())["model"]["merges"]
        to = vocabulary[1]
    assert difference(*changed(kind, *path, to=to), "ours") == message


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_are_no_difference(kind: str) -> None:
    first = KINDS[kind]()
    second = first
    for _ in range(5):  # as folders, corpora and exports hand it on
        second = Tokenizer.from_str(second.to_str())
    assert difference(first, second, "ours") == difference(second, first, "ours") == ""
    second.add_tokens([AddedToken("<|user|>", special=True), "word"])
    assert difference(first, second, "ours") == ""
    assert difference(second, first, "ours").endswith("and ours does not have it")
