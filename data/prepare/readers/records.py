"""How a record (a row of a table, a JSON object) becomes a document: one text, or two, or ids; licence,
language and class.
"""

from typing import Any
from urllib.parse import unquote

import numpy as np

from data.corpus.columns import CLASS, CLASS_NUMBER, PICTURES
from data.prepare.document import Document
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import decoded
from data.prepare.sources.sources import InputFile, as_text
from data.prepare.tally import Tally
from data.prepare.tasks.records import of_task

_MOST_FIELDS = 12


def origin_of(file: InputFile, **place: Any) -> dict[str, Any]:
    """The origin of a document: source, path below the source, and the place in the file."""
    return {"source": file.source, "path": file.relative, **place}


def whole(text: str, tally: Tally, where: str) -> str:
    """The text as UTF-8 can hold it: half of a surrogate pair, which JSON allows, becomes U+FFFD and is
    counted.
    """
    if text.isascii():  # a flag of the string: no scan
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        tally.add("changed.not_unicode", len(text), where)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _whole(value: Any, tally: Tally, where: str) -> Any:
    """A value whose texts, at any depth, are as UTF-8 can hold them; see `whole`."""
    if isinstance(value, str):
        return whole(value, tally, where)
    if isinstance(value, list):
        return [_whole(one, tally, where) for one in value]
    if isinstance(value, dict):
        return {key: _whole(one, tally, where) for key, one in value.items()}
    return value


def value_at(record: dict[str, Any], name: str) -> Any:
    """The value of the field `name`; for "doc.body" also of the field `body` in the field `doc`, and for
    "captions.0" the first value of the list `captions`. None where there is none.
    """
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if isinstance(value, list):
            value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def partitions(file: InputFile) -> dict[str, str]:
    """The fields that a file's folders state, as in a table partitioned by Hive: lang=en/part-0.parquet."""
    pairs = (part.partition("=") for part in as_text(file.path).split("/")[:-1])
    named = {key: unquote(value) for key, equals, value in pairs if key and equals}
    return {key: value for key, value in named.items() if value != "__HIVE_DEFAULT_PARTITION__"}


def from_record(
    record: dict[str, Any], file: InputFile, where: str, recipe: Recipe, tally: Tally, **place: Any
) -> Document | None:
    """The document of a record: its text, or the token ids that it holds instead.

    None for a record that has neither, or that cannot be taken; the tally counts it, with `where` as the
    place. Licence, language and class go into the origin.
    """
    origin, folder_fields = origin_of(file, **place), partitions(file)
    if recipe.task:
        return of_task(
            lambda name: _whole(value_at(record, name), tally, where), file, origin, recipe, tally, where
        )
    origin |= _class_of(record, recipe, folder_fields, tally, where)
    for key, name in ((recipe.licence_field, "licence"), (recipe.language_field, "language")):
        value = value_at(record, key)
        value = folder_fields.get(key) if value is None else value
        if value is not None:
            value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            origin[name] = value if isinstance(value, str) else str(value)
    text = value_at(record, recipe.text_field)
    if recipe.image_field:
        return _with_picture(record, text, origin, recipe, tally, where)
    if isinstance(text, str | bytes):
        first = _text(text, recipe, tally, where)
        if first is None or not recipe.second_field:
            return None if first is None else Document(first, origin)
        found = value_at(record, recipe.second_field)
        if not isinstance(found, str | bytes):
            has = (
                fields_of([*record]) if found is None else f"{recipe.second_field} is {type(found).__name__}"
            )
            tally.add("removed.no_second_text", len(first), f"{where} (fields: {has})")
            return None
        second = _text(found, recipe, tally, where)
        if second is not None and not second.strip():
            tally.add("removed.no_second_text", len(first), f"{where} ({recipe.second_field} is empty)")
            return None
        return None if second is None else Document(first, origin, second=second)
    ids = value_at(record, recipe.ids_field) if text is None else None
    if isinstance(ids, list):
        return _from_ids(ids, value_at(record, "attention_mask"), Document("", origin), file, where, tally)
    has = f"fields: {fields_of([*record, *folder_fields])}"
    if text is not None or recipe.text_field in record:
        has = f"{recipe.text_field} is {'null' if text is None else type(text).__name__}"
    tally.add("removed.no_text_field", 0, f"{where} ({has})")
    return None


def _with_picture(
    record: dict[str, Any], text: Any, origin: dict[str, Any], recipe: Recipe, tally: Tally, where: str
) -> Document | None:
    """The document of a record with a picture; the `text` may be missing, and is counted where it is."""
    picture = value_at(record, recipe.image_field)
    path = ""
    if isinstance(picture, dict):
        path = str(picture.get("path") or "")
        picture = picture.get("bytes")
    if not isinstance(picture, bytes) or not picture:
        has = f"its bytes are not stored, only its path {path}" if path else f"is {type(picture).__name__}"
        tally.add("removed.no_picture_in_row", 0, f"{where} ({recipe.image_field} {has})")
        return None
    if len(picture) > recipe.max_document_bytes:
        tally.add("removed.too_long_document", len(picture), where)
        return None
    caption: str | None = ""
    if isinstance(text, str | bytes):
        caption = _text(text, recipe, tally, where)
    if caption is None:
        return None
    if not caption.strip():
        caption = ""
        tally.add("noted.no_caption", len(picture), where + not_a_text(recipe.text_field, text))
    # Cleaning finds the true format by the content.
    return Document(caption, origin, media={PICTURES[0]: picture})


def not_a_text(name: str, value: Any) -> str:
    """What a message adds where the field `name` holds something that is no text; "" where it holds none."""
    return "" if value is None or isinstance(value, str | bytes) else f" ({name} is {type(value).__name__})"


def _text(value: str | bytes, recipe: Recipe, tally: Tally, where: str) -> str | None:
    """A field's text; None, counted in the tally, where it is too long or cannot be decoded."""
    text = decoded(value, recipe, tally, where) if isinstance(value, bytes) else value
    if text is None:
        return None
    if too_long(text, recipe):
        tally.add("removed.too_long_document", len(text), where)
        return None
    return whole(text, tally, where)


def _class_of(
    record: dict[str, Any], recipe: Recipe, folder_fields: dict[str, str], tally: Tally, where: str
) -> dict[str, Any]:
    """The class of a record as fields of its origin: its name, and its number where it is one."""
    if not recipe.label_field:
        return {}
    value = value_at(record, recipe.label_field)
    value = folder_fields.get(recipe.label_field) if value is None else value
    return class_of(value, tally, where)


def class_of(value: Any, tally: Tally, where: str) -> dict[str, Any]:
    """A class as fields of an origin: its name, and its number where it is one. Empty, and counted, where the
    value is none; datasets state by −1 that a class is not known.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    unknown = isinstance(value, int) and value < 0
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "" or unknown:
        is_other = value is not None and not isinstance(value, str | int)
        tally.add("noted.no_class", 0, f"{where} (it is {type(value).__name__})" if is_other else where)
        return {}
    return {CLASS: str(value), **({CLASS_NUMBER: value} if isinstance(value, int) else {})}


def fields_of(names: list[str]) -> str:
    """The names of fields, cut so that a message stays one line."""
    shown = ", ".join(sorted(str(name) for name in names)[:_MOST_FIELDS])
    return shown + (f" and {len(names) - _MOST_FIELDS} more" if len(names) > _MOST_FIELDS else "")


def too_long(text: str, recipe: Recipe) -> bool:
    """Has the text more bytes of UTF-8 than `max_document_bytes`?"""
    limit = recipe.max_document_bytes
    if len(text) * 4 <= limit or (text.isascii() and len(text) <= limit):
        return False
    return len(text) > limit or len(text.encode("utf-8", "surrogatepass")) > limit


def _from_ids(
    values: list[Any], mask: Any, document: Document, file: InputFile, where: str, tally: Tally
) -> Document | None:
    """Give `document` the ids of a row that was tokenised before, without its padding.

    The separator at the end of the row is taken off as well: a corpus keeps it between its documents. None,
    counted in the tally, where a value is no integer of 64 bits. Raises ValueError where no tokenizer is
    given.
    """
    if file.tokens is None:
        raise ValueError(
            f"{where} holds token ids and no text: give the tokenizer that made them with --tokenizer FILE"
        )
    if not all(type(value) is int for value in values):
        tally.add("removed.ids_not_integers", 0, where)
        return None
    try:
        ids = np.array(values, np.int64)
    except OverflowError:
        tally.add("removed.ids_not_integers", 0, f"{where} (one is beyond 64 bits)")
        return None
    if isinstance(mask, list) and len(mask) == len(values) and not all(mask):
        ids = ids[np.array(mask, bool)]
        tally.add("changed.padding_taken_off", 0, where)
    if ids.size and ids[-1] == file.tokens.separator:
        ids = ids[:-1]
        tally.add("changed.separator_taken_off", 0, where)
    if (ids == file.tokens.separator).any():
        tally.add("noted.separator_in_ids", 0, where)
    document.ids = ids
    return document
