"""Decontamination: a document that shares a run of n words with an evaluation text is left out.

As GPT-3 did it (Brown et al. 2020, arXiv:2005.14165, appendix C): n = 13, lower case, punctuation ignored.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.opening import open_bytes
from data.prepare.cleaning.words import Hashes, hashes, plain_words, runs
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import decode
from data.prepare.sources.looks import BOM
from data.prepare.sources.sources import expand
from data.prepare.tally import Tally


def write_evaluation_runs(recipe: Recipe, path: Path) -> int:
    """Store the sorted hashes of all n-grams of the evaluation files; return how many texts were too short.

    Raises ValueError where the files hold no run of n words at all.
    """
    found: list[Hashes] = []
    short = 0
    for text in _texts(recipe):
        of_text = runs(hashes(plain_words(text)), recipe.decontaminate_words)
        found.append(np.unique(of_text))
        short += not len(of_text)
    every = np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)
    if not len(every):
        raise ValueError(
            f"--decontaminate {' '.join(map(repr, recipe.decontaminate))}: no text there has "
            f"{recipe.decontaminate_words} words: give a smaller --decontaminate-words"
        )
    temporary = path.with_name("evaluation.tmp.npy")
    np.save(temporary, every, allow_pickle=False)
    temporary.replace(path)
    return short


def _texts(recipe: Recipe) -> Iterator[str]:
    """Yield every string of every JSON record, and the whole text of any other file."""
    files = expand(recipe.decontaminate, Recipe())
    for file in files:
        with open_bytes(file.path) as stream:
            if file.kind == "json":
                yield from _strings(_value(stream.read(), file.path))
            elif file.kind == "jsonl":
                for number, line in enumerate(stream, 1):
                    yield from _strings(_value(line, f"{file.path}, line {number}"))
            else:
                text = decode(stream.read(), Recipe(), Tally(), file.path)
                if text is None:
                    raise ValueError(
                        f"--decontaminate {file.path} is no text: give text, JSON or lines of JSON"
                    )
                yield text


def _value(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw.removeprefix(BOM))
    except (ValueError, RecursionError):
        raise ValueError(f"--decontaminate {where} is not JSON, or nested too deeply") from None


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value


def is_contaminated(text: str, recipe: Recipe, every: Hashes) -> bool:
    """Does the text share a run of words with an evaluation text? `every`: the stored hashes, sorted."""
    mine = runs(hashes(plain_words(text)), recipe.decontaminate_words)
    places = np.searchsorted(every, mine)
    places[places == len(every)] = 0
    return bool((every[places] == mine).any())
