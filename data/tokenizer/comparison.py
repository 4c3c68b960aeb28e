"""Do two tokenizers make the same ids of a text?"""

from __future__ import annotations

import json
import math
from typing import Any

from tokenizers import Tokenizer

_MATCHING = ("single_word", "lstrip", "rstrip", "normalized")
"""Keys of an added token that decide where a text holds it."""


def difference(first: Tokenizer, second: Tokenizer, name: str) -> str:
    """Return in words, which follow the first one's name, why the ids of a text may differ; empty where they
    do not. The second may have more tokens. What stands around a text is left out: corpora may be without.

    name: of the second.
    """
    here = second.get_vocab(with_added_tokens=True)
    for token, number in sorted(first.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]):
        if here.get(token) != number:
            has = f"has it as {here[token]}" if token in here else "does not have it"
            return f"has {token!r} as id {number}, and {name} {has}"
    one, two = (json.loads(tokenizer.to_str()) for tokenizer in (first, second))
    for key in ("normalizer", "pre_tokenizer"):
        if one[key] != two[key]:
            return f"has another {key} than {name}"
    for key, value in one["model"].items():
        if not _continues(value, two["model"].get(key)):
            return f"has another model.{key} than {name}"
    theirs = {token["content"]: token for token in two["added_tokens"]}
    for token in one["added_tokens"]:
        other = theirs.get(token["content"], {})
        if any(token[key] != other.get(key) for key in _MATCHING):
            return f"finds the token {token['content']!r} in other places of a text than {name}"
    return ""


def _continues(value: Any, other: Any) -> bool:
    """Whether `other` is `value`, or a longer list that begins with it. Ids of tokens are known to fit."""
    if isinstance(value, dict):
        return isinstance(other, dict)
    if isinstance(value, list):
        return isinstance(other, list) and len(other) >= len(value) and all(map(_same, value, other))
    return bool(value == other)


def _same(one: Any, other: Any) -> bool:
    """Whether two merges are the same, or two tokens of Unigram with their scores. The library reads a score
    from JSON to within its last digit alone, so one that was read and written is another.
    """
    if one == other or one[0] != other[0]:
        return bool(one == other)
    scores = one[1], other[1]
    return all(isinstance(score, float) for score in scores) and math.isclose(*scores, rel_tol=1e-12)
