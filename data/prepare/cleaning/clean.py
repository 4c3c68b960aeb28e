"""The cleaning of one document: the steps that a recipe asks for, in one fixed order, counted in the tally.

    licence → encoding → normal form → length → quality filters → language → scrub hook → decontamination

A step changes the document in place and returns whether it is kept. A document that a step does not keep goes
through no further step.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from data.prepare.cleaning import quality
from data.prepare.cleaning.decontaminate import is_contaminated
from data.prepare.cleaning.hooks import load_hook
from data.prepare.cleaning.pictures import keep_picture
from data.prepare.cleaning.words import Hashes
from data.prepare.document import Document
from data.prepare.recipe import Recipe
from data.prepare.tally import Tally

Keep = Callable[[Document, Tally], bool]


@dataclass(frozen=True)
class CleaningStep:
    """One step of the cleaning.

    keep: changes a document in place, counts the change, and returns whether the document is kept.
    of_text: does the step work on the text? If so, documents that are not text alone pass without it.
    """

    keep: Keep
    of_text: bool = True


def cleaning_steps(recipe: Recipe, evaluation: Path) -> list[CleaningStep]:
    """The steps that the recipe asks for, in order.

    evaluation: the file in which `data.prepare.cleaning.decontaminate` has stored the n-grams to keep out.

    Raises ValueError for a hook or a library that is not there.
    """
    chosen: list[Keep] = []
    if recipe.fix_encoding:
        chosen.append(_fix_encoding())
    if recipe.normal_form:
        chosen.append(partial(_normal_form, recipe))
    if recipe.min_characters or recipe.max_characters:
        chosen.append(partial(_length, recipe))
    chosen += [_FILTERS[name] for name in recipe.filters]
    if recipe.language_hook or recipe.languages:
        chosen.append(_language(recipe))
    if recipe.scrub_hook:
        chosen.append(partial(_scrub, load_hook("scrub_hook", recipe.scrub_hook)))
    if recipe.decontaminate:
        chosen.append(_contamination(recipe, evaluation))
    licences = [CleaningStep(partial(_licence, recipe), of_text=False)] if recipe.licences else []
    return licences + [CleaningStep(keep) for keep in chosen]


def cleaner(recipe: Recipe, evaluation: Path) -> Keep:
    """All steps of `cleaning_steps` as one function, which also leaves out what is empty after them, and
    pictures that cannot be decoded.

    Given ids, captions and classes of pictures, and pairs of texts are taken as they are: only their licence
    is checked.
    """
    chosen = cleaning_steps(recipe, evaluation)

    def keep(document: Document, tally: Tally) -> bool:
        if document.media and not keep_picture(document, tally):
            return False
        for step in chosen:
            if (document.is_text or not step.of_text) and not step.keep(document, tally):
                return False
        empty = not document.text.strip() if document.ids is None else not document.ids.size
        if empty and not document.media:
            return _remove(document, tally, "empty")
        return True

    return keep


def _remove(document: Document, tally: Tally, reason: str) -> Literal[False]:
    tally.add(f"removed.{reason}", len(document.text), document.where)
    return False


def _change(document: Document, tally: Tally, reason: str, text: str) -> None:
    if text != document.text:
        tally.add(f"changed.{reason}", len(document.text), document.where)
        document.text = text


def _licence(recipe: Recipe, document: Document, tally: Tally) -> bool:
    licence = document.origin.get("licence")
    if licence is None:
        return _remove(document, tally, "licence.not_stated")
    if licence.casefold() not in {name.casefold() for name in recipe.licences}:
        return _remove(document, tally, "licence.not_allowed")
    return True


def _fix_encoding() -> Keep:
    try:
        import ftfy
    except ImportError:
        raise ValueError("--fix-encoding needs ftfy, which is not installed: pip install ftfy") from None
    # Only what undoes a wrong decoding: no curly quotes straightened, no markup unescaped in code.
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        fix_line_breaks=False,
        remove_terminal_escapes=False,
        normalization=None,
        explain=False,
    )

    def fix(document: Document, tally: Tally) -> bool:
        if not document.text.isascii():
            _change(document, tally, "encoding_fixed", ftfy.fix_text(document.text, config))
        return True

    return fix


def _normal_form(recipe: Recipe, document: Document, tally: Tally) -> bool:
    _change(document, tally, "normal_form", unicodedata.normalize(recipe.normal_form, document.text))  # type: ignore[arg-type]
    return True


def _length(recipe: Recipe, document: Document, tally: Tally) -> bool:
    if len(document.text) < recipe.min_characters:
        return _remove(document, tally, "too_short")
    if recipe.max_characters and len(document.text) > recipe.max_characters:
        return _remove(document, tally, "too_long")
    return True


def _gopher_quality(document: Document, tally: Tally) -> bool:
    reason = quality.gopher_quality(document.text)
    return not reason or _remove(document, tally, f"gopher_quality.{reason}")


def _gopher_repetition(document: Document, tally: Tally) -> bool:
    reason = quality.gopher_repetition(document.text)
    return not reason or _remove(document, tally, f"gopher_repetition.{reason}")


def _c4(document: Document, tally: Tally) -> bool:
    text, reason = quality.c4(document.text)
    if reason:
        return _remove(document, tally, f"c4.{reason}")
    _change(document, tally, "c4_lines", text)
    return True


_FILTERS: dict[str, Keep] = {
    "c4": _c4,
    "gopher_quality": _gopher_quality,
    "gopher_repetition": _gopher_repetition,
}


def _language(recipe: Recipe) -> Keep:
    detect = load_hook("language_hook", recipe.language_hook) if recipe.language_hook else None

    def keep(document: Document, tally: Tally) -> bool:
        if detect is not None:
            document.origin["language"] = str(detect(document.text))
        language = document.origin.get("language", "not_stated")
        if recipe.languages and language not in recipe.languages:
            return _remove(document, tally, f"language.{language}")
        return True

    return keep


def _scrub(scrub: Callable[[str], str], document: Document, tally: Tally) -> bool:
    _change(document, tally, "scrubbed", scrub(document.text))
    return True


def _contamination(recipe: Recipe, evaluation: Path) -> Keep:
    every: Hashes | None = None  # opened at the first document: the file is not there before

    def keep(document: Document, tally: Tally) -> bool:
        nonlocal every
        if every is None:
            every = np.load(evaluation, mmap_mode="r", allow_pickle=False)
        return not is_contaminated(document.text, recipe, every) or _remove(document, tally, "contaminated")

    return keep
