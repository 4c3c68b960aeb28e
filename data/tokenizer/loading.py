"""Any `tokenizer.json`: loaded, and asked for its vocabulary, its separator and its template.

The *separator* is the token between two documents. The *template* is what a tokenizer puts around every text,
such as Llama's `<s>` or BERT's `[CLS]` and `[SEP]`.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer

from data.tokenizer.folders import converted, tokenizer_file
from data.tokenizer.training import BUILT, SEPARATOR

# Usual names of the separator, ours first. A loaded tokenizer's separator is the first of these that it has.
SEPARATORS = (SEPARATOR, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>", "<|eos|>", "[SEP]")
_SENTENCEPIECE_REMEDY = (
    "give the tokenizer.json that most models have beside it, or make one: pip install transformers "
    "sentencepiece, then AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OUT)"
)


def given(name: Path | str) -> Tokenizer:
    """The tokenizer that a command names: one of BUILT, a file, or a Hugging Face folder."""
    if str(name) in BUILT:
        return BUILT[str(name)]()
    path = Path(tokenizer_file(name) or name)
    return _whole_texts(converted(path)) if path.is_dir() else load(path)


def load(path: Path) -> Tokenizer:
    """Read any `tokenizer.json`. Padding and truncation that the file asks for are switched off: a corpus
    holds whole documents. Raises ValueError, with the remedy, where the file is not a tokenizer.json.
    """
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
    return _whole_texts(tokenizer)


def _whole_texts(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def template(tokenizer: Tokenizer, separator: int) -> tuple[list[int], list[int]]:
    """(ids before, ids behind) that the tokenizer's template puts around a text. A separator at either end is
    left out: packing lays one before, between and behind documents anyway.

    Raises ValueError where the template cannot be told from the text's own tokens.
    """
    before, behind = whole_template(tokenizer)
    before = before[1:] if before[:1] == [separator] else before
    return before, behind[:-1] if behind[-1:] == [separator] else behind


def whole_template(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """As `template`, with the separators at its ends."""
    bare, whole = _probed(tokenizer)
    if whole == bare:
        return [], []
    places = range(len(whole) - len(bare) + 1) if bare else ()
    at = next((place for place in places if whole[place : place + len(bare)] == bare), None)
    if at is None:
        raise ValueError("the tokenizer's template cannot be told from a text's tokens: give --template drop")
    return whole[:at], whole[at + len(bare) :]


def _probed(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(ids without the template, ids with it) of the first text found that has ids; ([], …) where none has.

    Added tokens are not tried as the text: one may be part of the template.
    """
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
    """The same tokenizer with its template removed."""
    settings = json.loads(tokenizer.to_str())
    bare, whole = _probed(tokenizer)
    if whole != bare:
        settings["post_processor"] = None
    return Tokenizer.from_str(json.dumps(settings))


def separator_id(tokenizer: Tokenizer, separator: str = "") -> int:
    """The id of the separator: of the token `separator`, else of the first of SEPARATORS that the tokenizer
    has. Raises ValueError where the tokenizer does not have it.
    """
    for name in (separator,) if separator else SEPARATORS:
        number = tokenizer.token_to_id(name)
        if number is not None:
            return int(number)
    wanted = repr(separator) if separator else f"none of {', '.join(SEPARATORS)}"
    has = "does not have" if separator else "has"
    raise ValueError(f"the tokenizer {has} {wanted}: give the token that ends a document with --separator")


def vocab_size(tokenizer: Tokenizer) -> int:
    """Largest id + 1, which is what an embedding needs (ids need not be contiguous)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
