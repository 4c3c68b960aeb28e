"""Tokenizers that are trained on texts, or built without any.

train(kind, texts, vocab)    one of TRAINED: byte-level BPE, WordPiece, characters
BUILT                        name → function of a tokenizer that needs neither a file nor training
"""

import re
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SEPARATOR = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
TRAINED = ("bpe", "wordpiece", "characters")
# A tokenizer is trained on words of at most so many characters; encoding does not cut.
WORD_CHARACTERS = 1024
_LONG_RUN = re.compile(rf"\S{{{WORD_CHARACTERS}}}|\s{{{WORD_CHARACTERS}}}")
_WORDPIECE_SPECIALS = [SEPARATOR, "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]


def train(kind: str, texts: Iterable[str], vocab: int) -> Tokenizer:
    """Train a tokenizer of `vocab` tokens on `texts`. The same texts in the same order give the same
    tokenizer. Raises ValueError for a kind that cannot be trained or a vocabulary that is too small.

    - `bpe`: byte-level (Radford et al. 2019, GPT-2), without a normaliser and with all 256 byte symbols:
      lossless.
    - `wordpiece`: BERT's (Devlin et al. 2018), NFC and case kept; it loses white space, as WordPiece does.
    - `characters`: one token a character seen, for protein and genomic sequences; `vocab` bounds the
      alphabet.
    """
    texts = (part for text in texts for part in _short_words(text))
    if kind == "bpe":
        return _train_bpe(texts, vocab)
    if kind == "wordpiece":
        return _train_wordpiece(texts, vocab)
    if kind == "characters":
        return _build_characters(texts, vocab)
    raise ValueError(f"tokenizer kind {kind!r} cannot be trained: give one of {', '.join(TRAINED)}")


def check_vocab(kind: str, vocab: int) -> None:
    """Raise ValueError where `vocab` cannot hold the tokens that every tokenizer of this kind has."""
    if kind == "bpe" and vocab < (least := len(pre_tokenizers.ByteLevel.alphabet()) + 1):
        raise ValueError(f"vocabulary of {vocab} is too small for byte-level BPE: give at least {least}")
    if kind == "wordpiece" and vocab <= (least := len(_WORDPIECE_SPECIALS)):
        raise ValueError(f"vocabulary of {vocab} is too small for WordPiece: {least} are special tokens")
    if vocab < 1:
        raise ValueError(f"vocabulary of {vocab} tokens holds nothing: give at least 1")


def _short_words(text: str) -> Iterator[str]:
    """The text, cut after every WORD_CHARACTERS characters without white space, or of white space alone: the
    time the trainers take grows with the square of a word's length.
    """
    start = 0
    for run in _LONG_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]


def _train_bpe(texts: Iterable[str], vocab: int) -> Tokenizer:
    check_vocab("bpe", vocab)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train_wordpiece(texts: Iterable[str], vocab: int) -> Tokenizer:
    specials = _WORDPIECE_SPECIALS
    check_vocab("wordpiece", vocab)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _build_characters(texts: Iterable[str], vocab: int) -> Tokenizer:
    counts: dict[str, int] = {}
    for text in texts:
        for character in set(text):
            counts[character] = counts.get(character, 0) + 1
    commonest = sorted(counts, key=lambda character: (-counts[character], character))[: max(0, vocab - 2)]
    return characters(sorted(commonest))


def characters(alphabet: Iterable[str]) -> Tokenizer:
    """One token a character of `alphabet`; any other becomes `<|unknown|>`."""
    vocabulary = {token: number for number, token in enumerate([SEPARATOR, UNKNOWN, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([SEPARATOR, UNKNOWN])
    return tokenizer


def utf8_bytes() -> Tokenizer:
    """One token a byte of UTF-8 (id = byte order of the alphabet + 1), and the separator as id 0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([SEPARATOR, *alphabet])}
    tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([SEPARATOR])
    return tokenizer


# Tokenizers that need neither a file nor training.
BUILT = {"bytes": utf8_bytes}
