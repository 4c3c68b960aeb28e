"""Tokenizers: lossless where they promise it, deterministic, and never a separator out of a text."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from data.tokenizer import encoder, loading, training
from data.tokenizer.encoder import Encoder
from data.tokenizer.training import SEPARATOR

TEXTS = [
    "def train(model):\n\n    return model  # ünï 東京\n" * 5,
    "the cat and the hat sat\r\n\t on that mat 🌱",
] * 9
BPE = training.train("bpe", TEXTS, 320)
BYTES = training.utf8_bytes()


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "bytes"])
@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_byte_level_tokenizers_give_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = Encoder(tokenizer)(text)
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
    assert 0 not in ids


def test_the_same_texts_train_the_same_tokenizer() -> None:
    assert training.train("bpe", iter(TEXTS), 320).to_str() == BPE.to_str()
    assert 257 < loading.vocab_size(BPE) <= 320
    assert BPE.token_to_id(SEPARATOR) == 0 == loading.separator_id(BPE)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab \n\t\r.é", max_size=400), limit=st.integers(1, 60))
def test_a_long_text_in_parts_has_the_same_tokens(text: str, limit: int) -> None:
    """Up to a text without any place to cut, which is cut hard and still comes back whole."""
    parts = list(encoder.parts(text, limit))
    assert "".join(parts) == text
    assert all(len(part) <= limit for part in parts)
    encode = Encoder(BPE)
    joined = np.concatenate([encode(part) for part in parts])
    assert BPE.decode(joined.tolist(), skip_special_tokens=False) == text
    hard = any(not (b.startswith("\n") and not a[-1:].isspace()) for a, b in itertools.pairwise(parts))
    if not hard:
        np.testing.assert_array_equal(joined, encode(text))


def test_wordpiece_and_characters() -> None:
    wordpiece = training.train("wordpiece", TEXTS, 120)
    assert loading.separator_id(wordpiece) == 0
    assert wordpiece.decode(Encoder(wordpiece)("the cat sat").tolist()) == "the cat sat"
    protein = training.train("characters", ["MKVLA\n", "GHA A"], 400)
    assert loading.vocab_size(protein) == 2 + len(set("MKVLA\nGH "))
    ids = Encoder(protein)("AMX\nA")
    assert len(ids) == 5
    assert protein.decode(ids.tolist(), skip_special_tokens=False) == "AM<|unknown|>\nA"
    assert loading.vocab_size(training.train("characters", ["abcdefgh"], 5)) == 5


def test_ids_take_the_least_room(tmp_path: Path) -> None:
    assert Encoder(BPE).dtype == np.uint16
    names = {SEPARATOR: 0, **{f"word{number}": number for number in range(1, 1 << 16)}, "last": 1 << 16}
    assert Encoder(Tokenizer(models.WordLevel(names, unk_token=SEPARATOR))).dtype == np.uint32


def test_what_a_file_says_of_padding_and_cutting_is_not_followed(tmp_path: Path) -> None:
    cut = Tokenizer.from_str(BPE.to_str())
    cut.enable_truncation(4)
    cut.enable_padding(length=9, pad_id=3)
    cut.save(str(tmp_path / "cut.json"))
    text = "the cat and the hat sat on that mat"
    np.testing.assert_array_equal(Encoder(loading.load(tmp_path / "cut.json"))(text), Encoder(BPE)(text))


def test_the_separator_is_found_or_asked_for() -> None:
    named = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "[STOP]": 2}, unk_token="a"))
    assert loading.separator_id(named) == 1
    assert loading.separator_id(named, "[STOP]") == 2
    with pytest.raises(
        ValueError, match="does not have '<eot>': give the token that ends a document with --separator"
    ):
        loading.separator_id(named, "<eot>")
    with pytest.raises(ValueError, match="has none of"):
        loading.separator_id(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


def test_what_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="give at least 257"):
        training.train("bpe", TEXTS, 256)
    with pytest.raises(ValueError, match="'sentencepiece' cannot be trained"):
        training.train("sentencepiece", TEXTS, 256)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("letters", ["abcdefgh", " \n"])
def test_training_does_not_hang_on_an_endless_word(letters: str) -> None:
    word = "".join(random.Random(0).choices(letters, k=1_000_000))
    made = training.train("bpe", ["some words", word], 600)
    assert loading.vocab_size(made) > 257
    assert "".join(training._short_words(word)) == word, "nothing is lost"


@pytest.mark.parametrize("unk", [None, ""])
def test_a_template_is_found_where_the_tokenizer_has_no_letter_a(unk: str | None) -> None:
    """WordLevel without unk_token raises for a word that it lacks, and BPE gives no id."""
    names = {"<s>": 0, "</s>": 1, "M": 2}
    model = models.WordLevel(names) if unk is None else models.BPE(vocab=names, merges=[])
    made = Tokenizer(model)
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert loading.template(made, 1) == ([0], [])
    assert Encoder(made, 1)("M").tolist() == [0, 2]
    made.post_processor = processors.TemplateProcessing(single="<s>", special_tokens=[("<s>", 0)])
    with pytest.raises(ValueError, match="template cannot be told from a text's tokens: give --template"):
        loading.template(made, 1)
    assert loading.template(loading.without_template(made), 1) == ([], [])


def test_ids_that_are_no_text_are_decoded_once_and_characters_are_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoder, "_DECODED_AT_ONCE", 64)
    encode = Encoder(BYTES)
    decoded = 0
    real = Encoder._decode

    def counted(self: Encoder, ids: np.ndarray) -> str:
        nonlocal decoded
        decoded += len(ids)
        return real(self, ids)

    monkeypatch.setattr(Encoder, "_decode", counted)
    continuation = BYTES.encode("é").ids[1:]
    assert encode.text_bytes(np.array(continuation * 4096)) == 3 * 4096
    assert decoded < 16 * 4096
    for shift in range(4):
        text = "x" * shift + "\ufffd" * 40 + "🌱" * 40
        assert encode.gives_back(text, encode(text)) and encode.text_bytes(encode(text)) == len(text.encode())
