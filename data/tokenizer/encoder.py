"""Text to token ids and back, for whole documents of any length."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data.tokenizer.loading import template, vocab_size

# The library takes about 100 bytes of memory for each token of the text that it encodes in one call: longer
# texts are encoded in parts.
PART_CHARACTERS = 1 << 20
# Ids are turned to text so many at a time: as Python's integers they are ten times as large.
_DECODED_AT_ONCE, _AROUND = 1 << 18, 8


def parts(text: str, limit: int = PART_CHARACTERS) -> Iterator[str]:
    """Cut a text into parts of at most `limit` characters, before a line end that follows a non-space. There
    GPT-2's splitting pattern, and those that follow it, have a token boundary; so the parts' tokens are those
    of the whole text. A text without such a place is cut at `limit`.
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
    """text → token ids [tokens], with the tokenizer's template around them. What looks like a special token
    inside a text is encoded as text, never as a separator.

    tokenizer: set to encode special tokens as text.
    separator: the id between documents; the template's last id is left out where it is the same.

    Attributes: `before`, `behind`: the template's ids; `vocab`: see `vocab_size`; `dtype`: of the ids.
    """

    def __init__(self, tokenizer: Tokenizer, separator: int = -1) -> None:
        self.tokenizer, self.separator = tokenizer, separator
        self.before, self.behind = template(tokenizer, separator)
        self.tokenizer.encode_special_tokens = True
        self.vocab = vocab_size(tokenizer)
        self.dtype: np.dtype = np.dtype(np.uint16 if self.vocab <= 1 << 16 else np.uint32)

    def __call__(self, text: str) -> NDArray[np.unsignedinteger]:
        if len(text) <= PART_CHARACTERS and not self.before and not self.behind:
            return self._encode(text)
        around = (np.array(ids, self.dtype) for ids in (self.before, self.behind))
        return np.concatenate([next(around), *map(self._encode, parts(text)), next(around)])

    def each(self, texts: Sequence[str]) -> list[NDArray[np.unsignedinteger]]:
        """The ids of each text. Texts go to the library together, a tenth faster than one by one; the
        library spreads them over as many threads as RAYON_NUM_THREADS allows.
        """
        if self.before or self.behind or any(len(text) > PART_CHARACTERS for text in texts):
            return [self(text) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def placed(
        self, text: str, *, special: bool = False
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
        """The ids of a text without the template, and of each its first character and the one behind it,
        int64 [tokens, 2].

        special: read what looks like a special token as that token.
        """
        ids, places, at = [], [], 0
        self.tokenizer.encode_special_tokens = not special
        try:
            for part in parts(text):
                encoding = self.tokenizer.encode(part, add_special_tokens=False)
                ids += encoding.ids
                places += [(begin + at, end + at) for begin, end in encoding.offsets]
                at += len(part)
        finally:
            self.tokenizer.encode_special_tokens = True
        return np.array(ids, dtype=self.dtype), np.array(places, dtype=np.int64).reshape(-1, 2)

    def gives_back(self, text: str, ids: NDArray[np.integer]) -> bool:
        """Whether the ids decode to exactly this text."""
        at = 0
        for part in self._texts(ids):
            if not text.startswith(part, at):
                return False
            at += len(part)
        return at == len(text)

    def text_bytes(self, ids: NDArray[np.integer]) -> int:
        """UTF-8 bytes of the text that the ids decode to."""
        return sum(len(part.encode()) for part in self._texts(ids))

    def _texts(self, ids: NDArray[np.integer]) -> Iterator[str]:
        """The text that the ids decode to, in parts, without the template."""
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
        """The first place from `end` on, among a few, that cuts no character: the ids before it decode to the
        same text with and without the ids behind it. `end` where there is none.
        """
        for place in range(end, min(end + _AROUND, len(ids))):
            near = ids[place - min(_AROUND, place) : place + _AROUND]
            if self._decode(near).startswith(self._decode(near[: min(_AROUND, place)])):
                return place
        return end

    def _decode(self, ids: NDArray[np.integer]) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)) if len(ids) else ""

    def _encode(self, text: str) -> NDArray[np.unsignedinteger]:
        # A batch of one: only the batch call has the variant that leaves offsets out, a quarter faster.
        encoding = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        return np.array(encoding.ids, dtype=self.dtype)
