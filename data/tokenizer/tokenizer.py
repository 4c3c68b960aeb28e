"""Tokenizers: trained, built or loaded, and always one `tokenizer.json` that says everything.

Every kind that `prepare` offers is a `tokenizers.Tokenizer`, so that whatever reads a corpus later
(training, generation, export) needs one file and one library, whichever kind it was.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SEPARATOR = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
# What other houses call the token between two documents; the first that a loaded tokenizer has is taken.
SEPARATORS = (SEPARATOR, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>", "<|eos|>", "[SEP]")
TRAINED = ("bpe", "wordpiece", "characters")
# The library's memory is about 100 bytes a token of the text it is given at once: longer texts go in pieces.
PIECE_CHARACTERS = 1 << 20
# Ids are turned to text so many at a time: as Python's integers they are ten times as large.
_DECODED_AT_ONCE, _AROUND = 1 << 18, 8
_SENTENCEPIECE_REMEDY = (
    "give the tokenizer.json that most models have beside it, or make one: pip install transformers "
    "sentencepiece, then AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OUT)"
)
# A tokenizer is trained on words of at most so many characters; encoding does not cut.
WORD_CHARACTERS = 1024
_LONG_RUN = re.compile(rf"\S{{{WORD_CHARACTERS}}}|\s{{{WORD_CHARACTERS}}}")
_WORDPIECE_SPECIALS = [SEPARATOR, "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]


def train(kind: str, texts: Iterable[str], vocab: int) -> Tokenizer:
    """Trains a tokenizer of `vocab` tokens on `texts`; the same texts in the same order give the same
    tokenizer.

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
    """Raises ValueError for a vocabulary that cannot hold what this kind always has."""
    if kind == "bpe" and vocab < (least := len(pre_tokenizers.ByteLevel.alphabet()) + 1):
        raise ValueError(f"vocabulary of {vocab} is too small for byte-level BPE: give at least {least}")
    if kind == "wordpiece" and vocab <= (least := len(_WORDPIECE_SPECIALS)):
        raise ValueError(f"vocabulary of {vocab} is too small for WordPiece: {least} are special tokens")
    if vocab < 1:
        raise ValueError(f"vocabulary of {vocab} tokens holds nothing: give at least 1")


def _short_words(text: str) -> Iterator[str]:
    """The text, cut inside every run of `WORD_CHARACTERS` without, or of nothing but, white space: the time
    the trainers take grows with the square of a word's length.
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


def given(name: Path | str) -> Tokenizer:
    """The tokenizer that a command names: one that is built, or a file."""
    return BUILT[str(name)]() if str(name) in BUILT else load(Path(name))


def load(path: Path) -> Tokenizer:
    """Reads any `tokenizer.json`. Padding and truncation that the file asks for are taken off: a corpus is
    whole.
    """
    if path.is_dir():
        raise ValueError(f"tokenizer {path} is a folder: give the file, such as {path / 'tokenizer.json'}")
    if not path.is_file():
        raise ValueError(
            f"tokenizer {path} is not there: give a tokenizer.json, or train one with --train-tokenizer"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception, whatever is wrong
        if path.read_bytes()[:64].find(b"<unk>") > 0 or path.suffix == ".model":
            raise ValueError(f"tokenizer {path} is a SentencePiece model: {_SENTENCEPIECE_REMEDY}") from None
        raise ValueError(f"tokenizer {path} cannot be read as a tokenizer.json: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def template(tokenizer: Tokenizer, separator: int) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before a text and behind it, such as Llama's `<s>` or BERT's `[CLS]`
    and `[SEP]`; without the separator at the end, which is laid between documents anyhow.
    """
    bare, whole = _probed(tokenizer)
    if whole == bare:
        return [], []
    places = range(len(whole) - len(bare) + 1) if bare else ()
    at = next((place for place in places if whole[place : place + len(bare)] == bare), None)
    if at is None:
        raise ValueError("the tokenizer's template cannot be told from a text's tokens: give --template drop")
    before, behind = whole[:at], whole[at + len(bare) :]
    return before, behind[:-1] if behind[-1:] == [separator] else behind


def _probed(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of a text that has any, without the template and with it; an added token may be part of it."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    for text in ("a", *sorted(vocabulary.keys() - added, key=vocabulary.__getitem__)):
        try:
            bare = tokenizer.encode(text, add_special_tokens=False).ids
        except Exception:  # the library's own, for a word that a tokenizer without unk_token does not have
            continue
        if bare:
            return bare, tokenizer.encode(text, add_special_tokens=True).ids
    return [], tokenizer.encode("", add_special_tokens=True).ids


def without_template(tokenizer: Tokenizer) -> Tokenizer:
    """The same, but for what it puts around a text."""
    said = json.loads(tokenizer.to_str())
    bare, whole = _probed(tokenizer)
    if whole != bare:
        said["post_processor"] = None
    return Tokenizer.from_str(json.dumps(said))


def separator_id(tokenizer: Tokenizer, separator: str = "") -> int:
    """The id of the token that stands between two documents: `separator`, else the first known name the
    tokenizer has.
    """
    for name in (separator,) if separator else SEPARATORS:
        number = tokenizer.token_to_id(name)
        if number is not None:
            return int(number)
    wanted = repr(separator) if separator else f"none of {', '.join(SEPARATORS)}"
    has = "does not have" if separator else "has"
    raise ValueError(f"the tokenizer {has} {wanted}: name the token that ends a document as separator")


def vocab_size(tokenizer: Tokenizer) -> int:
    """Largest id + 1, which is what an embedding needs (ids need not be contiguous)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def pieces(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cuts a long text where a line ends after a non-space, which is a token boundary in GPT-2's splitting
    pattern and those that follow it; so the pieces' tokens are the whole text's. A text without such a
    place is cut at `limit`.
    """
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start + 1, start + limit)
        while end > start and text[end - 1].isspace():
            end = text.rfind("\n", start + 1, end)
        if end <= start:
            end = start + limit
        yield text[start:end]
        start = end
    yield text[start:]


class Encoder:
    """text → token ids, 1-D, within the tokenizer's template; what looks like a special token inside a text
    is text, never a separator.
    """

    def __init__(self, tokenizer: Tokenizer, separator: int = -1) -> None:
        self.tokenizer = tokenizer
        self.before, self.behind = template(tokenizer, separator)
        self.tokenizer.encode_special_tokens = True
        self.vocab = vocab_size(tokenizer)
        self.dtype: np.dtype = np.dtype(np.uint16 if self.vocab <= 1 << 16 else np.uint32)

    def __call__(self, text: str) -> NDArray[np.unsignedinteger]:
        if len(text) <= PIECE_CHARACTERS and not self.before and not self.behind:
            return self._encode(text)
        around = (np.array(ids, self.dtype) for ids in (self.before, self.behind))
        return np.concatenate([next(around), *map(self._encode, pieces(text)), next(around)])

    def gives_back(self, text: str, ids: NDArray[np.integer]) -> bool:
        """Do the ids stand for the very same text?"""
        at = 0
        for part in self._texts(ids):
            if not text.startswith(part, at):
                return False
            at += len(part)
        return at == len(text)

    def text_bytes(self, ids: NDArray[np.integer]) -> int:
        """UTF-8 bytes of the text that ids stand for."""
        return sum(len(part.encode()) for part in self._texts(ids))

    def _texts(self, ids: NDArray[np.integer]) -> Iterator[str]:
        """The text that ids stand for, in parts, without the template around it."""
        before, behind = self.before, self.behind
        if before and ids[: len(before)].tolist() == before:
            ids = ids[len(before) :]
        if behind and ids[-len(behind) :].tolist() == behind:
            ids = ids[: -len(behind)]
        start = 0
        while start < len(ids):
            # Decoded with a few of the ids before, on which the first one's spelling may depend.
            end, begin = self._between_characters(ids, start + _DECODED_AT_ONCE), max(0, start - _AROUND)
            yield self._decode(ids[begin:end])[len(self._decode(ids[begin:start])) :]
            start = end

    def _between_characters(self, ids: NDArray[np.integer], end: int) -> int:
        """The first of `end` and a few ids behind it that cuts no character, which reads the same with what
        follows; else `end`.
        """
        for place in range(end, min(end + _AROUND, len(ids))):
            near = ids[place - min(_AROUND, place) : place + _AROUND]
            if self._decode(near).startswith(self._decode(near[: min(_AROUND, place)])):
                return place
        return end

    def _decode(self, ids: NDArray[np.integer]) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)) if len(ids) else ""

    def _encode(self, text: str) -> NDArray[np.unsignedinteger]:
        # A batch of one: only the batch call has the variant that leaves offsets out, a quarter faster; and
        # one text at a time keeps the library from starting as many threads as there are cores in every
        # worker.
        encoding = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        return np.array(encoding.ids, dtype=self.dtype)
