"""Which embedded corpora there are, and how each is prepared. Imports nothing heavy."""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from data.prepare.recipe import Recipe

PREFIX = "embedded:"
_HELDOUT = 0.1


@dataclass(frozen=True)
class EmbeddedCorpus:
    """One embedded corpus.

    write: "module:function" that writes the sources into a folder.
    about: what the documents are, in a few words.
    vocab: tokens of the tokenizer that is trained where the command names none.
    settings: of `Recipe`, where the command has the defaults.
    """

    write: str
    about: str
    vocab: int
    settings: Mapping[str, Any]


PYTHON_TAGS = ("O", "B-FUNCTION", "B-PARAMETER", "B-CALL", "I-CALL", "B-EXCEPTION", "I-EXCEPTION")

EMBEDDED = {
    "python": EmbeddedCorpus(
        "data.prepare.embedded.python_sources:write_functions",
        "functions of the standard library's packages; the class is the package",
        2048,
        {"label_field": "package"},
    ),
    "packages": EmbeddedCorpus(
        "data.prepare.embedded.python_sources:write_largest",
        "functions of the eight largest packages of the standard library; the class is the package",
        2048,
        {"label_field": "package"},
    ),
    "bytecode": EmbeddedCorpus(
        "data.prepare.embedded.bytecode:write_functions",
        "the same packages' functions as compiled, one letter an instruction; the class is the package",
        2048,
        {"label_field": "package", "train_kind": "characters"},
    ),
    "docstrings": EmbeddedCorpus(
        "data.prepare.embedded.python_sources:write_docstrings",
        "pairs of a docstring and its function's code, of the standard library",
        2048,
        {"second_field": "code"},
    ),
    "python_tags": EmbeddedCorpus(
        "data.prepare.embedded.python_tasks:write_tags",
        "short functions, token by token, with the names of functions, parameters, calls and exceptions",
        2048,
        {"task": "tags", "tag_name": [*PYTHON_TAGS]},
    ),
    "python_answers": EmbeddedCorpus(
        "data.prepare.embedded.python_tasks:write_answers",
        "questions about short functions, whose answers are in the code, if there are any",
        2048,
        {"task": "answers"},
    ),
    "python_chats": EmbeddedCorpus(
        "data.prepare.embedded.python_tasks:write_chats",
        "conversations: a short function, and the first line of its docstring",
        2048,
        {"task": "chat"},
    ),
    "glyphs": EmbeddedCorpus(
        "data.prepare.embedded.pictures:write_glyphs",
        "pictures of letters in matplotlib's fonts; the caption is the Unicode name, the class the script",
        512,
        {"label_folder": 1},
    ),
    "digits": EmbeddedCorpus(
        "data.prepare.embedded.pictures:write_digits",
        "pictures of the digits: scikit-learn's, where it is installed, else turned and moved ones",
        300,
        {"label_folder": 1},
    ),
    "proteins": EmbeddedCorpus(
        "data.prepare.embedded.proteins:write_families",
        "made-up proteins with planted motifs (FASTA); the class is the family",
        24,
        {"label_folder": 1, "train_kind": "characters"},
    ),
}


@dataclass(frozen=True)
class Asked:
    """A command's settings, where an embedded corpus has replaced those that were not given.

    recipe, tokenizer, train_tokenizer, heldout: as in `data.prepare.prepare.prepare`.
    write: writes the corpus's sources into a folder; None where the sources are files.
    """

    recipe: Recipe
    tokenizer: Path | str | None
    train_tokenizer: int | None
    heldout: float
    write: Callable[[Path], None] | None = None


def settings(sources: list[str], asked: Asked) -> Asked:
    """The settings with which these sources are prepared: `asked` itself, or those of an embedded corpus.

    Raises ValueError for an unknown name, or an embedded corpus among other sources.
    """
    named = [source.removeprefix(PREFIX) for source in sources if source.startswith(PREFIX)]
    if not named:
        return asked
    if len(sources) > 1:
        raise ValueError(f"{PREFIX}{named[0]} is prepared alone: leave the other sources out")
    if named[0] not in EMBEDDED:
        raise ValueError(f"{PREFIX}{named[0]} is not there: give one of {', '.join(EMBEDDED)}")
    corpus = EMBEDDED[named[0]]
    default = Recipe()
    given = {f.name for f in fields(Recipe) if getattr(asked.recipe, f.name) != getattr(default, f.name)}
    others = {name: value for name, value in corpus.settings.items() if name not in given}
    train = corpus.vocab if asked.tokenizer is None and asked.train_tokenizer is None else None
    return Asked(
        recipe=replace(asked.recipe, **others),
        tokenizer=asked.tokenizer,
        train_tokenizer=train or asked.train_tokenizer,
        heldout=asked.heldout or (0.0 if asked.recipe.heldout_match else _HELDOUT),
        write=pkgutil.resolve_name(corpus.write),
    )
