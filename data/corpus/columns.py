"""The columns of an index beyond the first four: where a document's picture is, its label, its two texts, its
marks.

    media_offset, media_bytes, media_crc    the picture: its first byte in the tar, its length, zlib.crc32
    label                                   the document's class, a place in the manifest's `classes`
    first_text                              of a document of two texts: the ids of the first one, which come
                                            before those of the second
    marked                                  of a document whose ids have marks: how many ids; the marks, as
        many numbers,
                                            come behind them

A manifest names the columns that its indexes have, in this order. `Columns.read` takes a document's values
from its sample; `merged` and `recast` bring shards that were written apart to the columns of one corpus.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data.corpus.tar import Sample, refuse

MEDIA = ("media_offset", "media_bytes", "media_crc")
LABEL = "label"
NO_LABEL = (1 << 64) - 1  # −1 as an int64
FIRST_TEXT = "first_text"  # also the key of a sample's JSON
ONE_TEXT = (1 << 64) - 1  # −1 as an int64
MARKED = "marked"  # also the key of a sample's JSON
NO_MARKS = (1 << 64) - 1  # −1 as an int64
# Name → what the column holds for a document that has no such thing.
COLUMNS: dict[str, int] = {
    **dict.fromkeys(MEDIA, 0),
    LABEL: NO_LABEL,
    FIRST_TEXT: ONE_TEXT,
    MARKED: NO_MARKS,
}
# Extensions of pictures in a shard. A sample has one picture at most.
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
CLASS, CLASS_NUMBER = "class", "class_number"  # keys of a sample's JSON
_MOST_UNNAMED = 1 << 16  # classes known by a number alone, numbers in between included


@dataclass(frozen=True)
class Columns:
    """What the indexes of a corpus hold beyond the first four rows.

    names: of the columns, in the order of COLUMNS.
    classes: the name of each label.
    media: extensions of the pictures.
    """

    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    media: tuple[str, ...] = ()

    def read(self, view: memoryview, sample: Sample, about: Mapping[str, Any], where: str) -> list[int]:
        """A document's values of these columns, in order.

        view: the shard.
        sample, about: the document's members, and its JSON.
        where: the shard, in errors.

        Raises RuntimeError, one line naming shard, sample and byte, for a sample that does not fit them.
        """
        values = dict(COLUMNS)
        pictures = [sample.members[name] for name in self.media if name in sample.members]
        if len(pictures) > 1:
            refuse(where, pictures[1].offset, f"sample {sample.key!r} has {len(pictures)} pictures")
        for member in pictures:
            crc = zlib.crc32(view[member.offset : member.offset + member.size])
            values |= zip(MEDIA, (member.offset, member.size, crc))
        if LABEL in self.names and (name := about.get(CLASS)) is not None:
            if name not in self._places:
                refuse(
                    where, sample.offset, f"sample {sample.key!r} is of class {name!r}, which is not listed"
                )
            values[LABEL] = self._places[name]
        for name in (FIRST_TEXT, MARKED):
            if name in self.names and (ids := about.get(name)) is not None:
                if type(ids) is not int or ids < 0:
                    refuse(
                        where, sample.offset, f"sample {sample.key!r}: {name} is {ids!r}, no number of ids"
                    )
                values[name] = ids
        return [values[name] for name in self.names]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.classes)}


def check(columns: Columns) -> None:
    """Raise ValueError where columns, classes and extensions do not go with one another."""
    known = tuple(name for name in COLUMNS if name in columns.names)
    if known != columns.names:
        raise ValueError(
            f"columns are {list(columns.names)}, which must be some of {list(COLUMNS)}, in order"
        )
    if any(not isinstance(name, str) for name in columns.classes):
        raise ValueError("a class is no text")
    if len(set(columns.classes)) < len(columns.classes):
        raise ValueError("a class is listed twice")
    if bool(columns.classes) != (LABEL in known):
        raise ValueError(f"it has {len(columns.classes)} classes and the columns {list(known)}")
    if columns.media and not set(MEDIA) <= set(known):
        raise ValueError(f"it has media {list(columns.media)} and the columns {list(known)}")


def merged(parts: Iterable[Columns], numbers: Mapping[str, int]) -> Columns:
    """The columns of a corpus whose shards have those of `parts`.

    numbers: class → the number that its source states, −1 where it states none.
    """
    parts = list(parts)
    names = {name for part in parts for name in part.names}
    media = {name for part in parts for name in part.media}
    return Columns(
        tuple(name for name in COLUMNS if name in names),
        in_order(numbers),
        tuple(name for name in PICTURES if name in media),
    )


def in_order(numbers: Mapping[str, int]) -> tuple[str, ...]:
    """The names of classes in the order of their numbers, or of their names where some have no number of
    their own. A number between them that no name has is a class by itself, named as the number.
    """
    by_number = {number: name for name, number in numbers.items()}
    if len(by_number) < len(numbers) or (numbers and min(by_number) < 0):
        return tuple(sorted(numbers))
    count = max(by_number, default=-1) + 1
    between = {str(number) for number in range(min(count, _MOST_UNNAMED)) if number not in by_number}
    if count > _MOST_UNNAMED or between & set(numbers):
        return tuple(by_number[number] for number in sorted(by_number))
    return tuple(by_number.get(number, str(number)) for number in range(count))


def recast(index: np.ndarray, old: Columns, new: Columns, first: int) -> np.ndarray:
    """An index with the columns `old`, as one with the columns `new`, uint64 [first + columns, documents].

    first: the rows before these columns.
    """
    count = index.shape[1]
    rows = dict(zip(old.names, index[first:]))
    if old.classes:
        place = {name: number for number, name in enumerate(new.classes)}
        numbers = np.array([place[name] for name in old.classes] + [NO_LABEL], dtype=np.uint64)
        labels = rows[LABEL]
        rows[LABEL] = numbers[np.where(labels == NO_LABEL, len(old.classes), labels).astype(np.int64)]
    more = [rows.get(name, np.full(count, COLUMNS[name], dtype=np.uint64)) for name in new.names]
    return np.ascontiguousarray(np.concatenate((index[:first], *(row[None] for row in more))))
