"""What an objective learns of the tokenizer: ids of special tokens, and which tokens begin a word."""

from dataclasses import replace

from tokenizers import AddedToken, Tokenizer

from data.tokenizer.loading import vocab_size
from data.tokenizer.training import BUILT, train
from trainer.objectives.config import CausalLMConfig, ObjectiveConfig
from trainer.objectives.context import ObjectiveContext

TEXTS = [
    "the masked words, masked wordily; unmasked",
    "words of many wordings 123 456",
    "the wording\nmany",
] * 4


def context(tokenizer: Tokenizer) -> ObjectiveContext:
    return ObjectiveContext(0, 64, vocab_size(tokenizer), 0, lambda: tokenizer.to_str().encode())


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text in words, as `starts_word` cuts it."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    starts = context(tokenizer).starts_word()
    found: list[str] = []
    for number, (begin, end) in zip(encoding.ids, encoding.offsets):
        if starts[number] or not found:
            found.append("")
        found[-1] += text[begin:end]
    return [word.strip() for word in found]


def test_ids_are_the_tokenizers_or_follow_its_vocabulary_in_order() -> None:
    found = context(train("wordpiece", TEXTS, 60))
    assert found.special["[MASK]"] == found.ids([["<mask>", "[MASK]"]])[0]
    wanted = [["<a>"], ["[SEP]", "</s>"], ["<b>"]]
    assert found.ids(wanted) == (found.vocab, found.special["[SEP]"], found.vocab + 1)
    assert ObjectiveContext(0, 64, 100, 0, bytes).ids(wanted) == (100, 101, 102)
    assert ObjectiveContext(0, 64, 100, 0, bytes).special == {}


def test_the_models_vocabulary_has_to_hold_the_objectives_ids() -> None:
    class Masked(ObjectiveConfig):
        kind = "masked"

        def extra_ids(self, seq_len: int) -> tuple[tuple[str, ...], ...]:
            return (("[MASK]",), ("<other>",))

    here = ObjectiveContext(0, 64, 100, 0, bytes)
    assert here.too_small(102, Masked()) == here.too_small(100, CausalLMConfig()) == ""
    assert here.too_small(0, Masked()) == "", "a model that takes no tokens"
    assert "100 tokens, and objective.kind=masked adds 2: set model.vocab to at least 102" in here.too_small(
        101, Masked()
    )
    assert here.too_small(99, CausalLMConfig()).endswith("100 tokens: set model.vocab to at least 100")
    knows = train("wordpiece", TEXTS, 60)
    assert "adds 1" in context(knows).too_small(vocab_size(knows), Masked())


def test_a_model_of_text_needs_a_corpus_with_text() -> None:
    here = ObjectiveContext(0, 64, 100, 0, bytes, tokens=0)
    assert here.wrong_corpora(100, CausalLMConfig()).startswith("objective.kind=causal_lm: the corpus has no")
    assert here.wrong_corpora(0, CausalLMConfig()) == "", "a model that takes no tokens"
    assert replace(here, tokens=1).wrong_corpora(100, CausalLMConfig()) == ""


def test_words_of_wordpiece() -> None:
    found = words(train("wordpiece", TEXTS, 60), "the masked wordings, many")
    assert found == ["the", "masked", "wordings", ",", "many"]


def test_words_of_byte_level_bpe() -> None:
    tokenizer = train("bpe", TEXTS, 290)
    tokenizer.add_special_tokens([AddedToken("<cls>")])
    text = "the masked wordings, many\twords"
    assert len(tokenizer.encode(text).ids) > 6, "some words are of several pieces"
    assert words(tokenizer, text) == ["the", "masked", "wordings", ",", "many", "words"]
    assert context(tokenizer).starts_word()[context(tokenizer).special["<cls>"]]


def test_every_token_is_a_word_where_nothing_is_marked() -> None:
    assert all(context(make()).starts_word().all() for make in BUILT.values())
    assert context(train("characters", TEXTS, 60)).starts_word().all()
    assert ObjectiveContext(0, 64, 10, 0, bytes).starts_word().all()
