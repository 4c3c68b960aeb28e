"""Words with a tag each, as in CoNLL's and Hugging Face's sets of named entities: {"tokens": […], "ner_tags":
[…]}.
"""

from typing import Any

from data.prepare.document import Document, Mark, Marks
from data.prepare.tally import Tally


def tagged(
    words: Any, tags: Any, names: list[str], origin: dict[str, Any], tally: Tally, where: str
) -> Document | None:
    """The words with a space between, as one text. The first token of a word has the mark of the word's tag,
    1 + its number; its other tokens have none, as is usual (Devlin et al. 2018, section 5.3).

    words: the words.
    tags: a number or a name for each; -1 and -100 for a word without.
    names: of the tags, by their numbers.

    None, counted in the tally, where the two do not go together. Raises ValueError for a tag without a
    number.
    """
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
        tally.add("removed.no_tags", 0, where)
        return None
    if not names and any(isinstance(tag, int) and tag >= 0 for tag in tags):
        tally.add("noted.unnamed_tags", 0, where)
    place, stretches = 0, []
    for word, tag in zip(words, tags):
        if not isinstance(word, str):
            tally.add("removed.no_tags", 0, where)
            return None
        number = _number(tag, names, where)
        if number >= 0 and word.strip():
            stretches.append(Mark(place, place + len(word), first=1 + number))
        place += len(word) + 1
    return Document(" ".join(words), origin, marks=Marks(tuple(stretches)))


def _number(tag: Any, names: list[str], where: str) -> int:
    if isinstance(tag, str) and tag in names:
        return names.index(tag)
    if isinstance(tag, int) and not isinstance(tag, bool):
        if tag in (-1, -100) or 0 <= tag < (len(names) or 1 << 15):
            return tag
        if tag < 0:
            raise ValueError(f"{where} has the tag {tag}: of those below 0 only -1 and -100 stand for no tag")
    raise unknown(tag, names, where)


def unknown(tag: Any, names: list[str], where: str) -> ValueError:
    """The error for a tag that has no number."""
    has = f"--tag-name gives {len(names)}" if names else "--tag-name gives none"
    return ValueError(
        f"{where} has the tag {tag!r}, and {has}: give the name of each tag, in the order of their numbers, "
        "such as --tag-name O --tag-name B-PER --tag-name I-PER"
    )
