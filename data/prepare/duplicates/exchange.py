"""The exchange: every share has keys with a value each, and learns each key's least value over all shares.

    send      share → its keys, each once with its least value, sorted into parts by the key's range
    reduce    part  → all shares' keys of a range; the least value of each key
    answers   share ← the least value for each of the keys that it sent

A hot key travels once a share, however many documents have it, so a part is bounded as a share is: about as
many rows as a share has, and for each hot key as many as there are shares. (The shuffle of MapReduce with a
combiner, Dean and Ghemawat 2004.)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.prepare.cleaning.words import Hashes
from data.prepare.duplicates.shares import Share, folder, output, write_rows
from data.prepare.preparation import Preparation, rename_into
from data.prepare.units import Advance

_SHIFT = np.uint64(32)
_WORD = 8  # bytes
KEYS, LEAST = "keys", "least"


def send(preparation: Preparation, share: Share, keys: Sequence[Hashes], values: NDArray[np.int64]) -> None:
    """Write a share's rows, and to which of them each key belongs.

    keys: one column or two, [rows] each; the first one's high bits are spread evenly.
    values: [rows].
    """
    order = np.lexsort(keys[::-1]) if len(keys) > 1 else np.argsort(keys[0], kind="stable")
    heads = _heads([column[order] for column in keys])
    row_of = np.empty(len(order), np.int64)
    row_of[order] = np.cumsum(heads) - 1
    unique = [column[order][heads] for column in keys]
    rows = np.stack([*unique, _least(values[order], heads).view(np.uint64)], axis=1)
    _write_parted(_parted(preparation, share, KEYS), rows, _bounds(unique[0], share.count))
    write_rows(output(preparation, share), row_of)


def reduce(preparation: Preparation, part: Share, advance: Advance) -> None:
    """Find the least value of each key in one part, for every share that sent the key.

    part: its number is that of the part, of which there are as many as shares.
    """
    done = _parted(preparation, part, LEAST)
    if not done.exists():
        pieces = [
            read_part(folder(preparation) / part.step / f"{share:06d}.{KEYS}", part.number, part.count)
            for share in range(part.count)
        ]
        rows = np.concatenate(pieces)
        keys, values = rows[:, :-1].T, rows[:, -1].view(np.int64)
        order = np.lexsort(keys[::-1])
        heads = _heads([column[order] for column in keys])
        least = np.empty(len(rows), np.int64)
        least[order] = _least(values[order], heads)[np.cumsum(heads) - 1]
        bounds = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
        _write_parted(done, least.view(np.uint64)[:, None], bounds)
    advance(-1)


def answers(preparation: Preparation, share: Share) -> NDArray[np.int64]:
    """[rows] the least value of each key that this share has sent in the step `sent`, as it was given."""
    step = folder(preparation) / share.sent
    least = [
        read_part(step / f"{part:06d}.{LEAST}", share.number, share.count)[:, 0]
        for part in range(share.count)
    ]
    return np.concatenate(least).view(np.int64)[np.load(output(preparation, share, share.sent))]


def write_numbers(path: Path, numbers: NDArray[np.int64], size: int, parts: int) -> None:
    """Write ascending numbers, in parts of `size` consecutive numbers each."""
    bounds = np.searchsorted(numbers, np.arange(parts + 1) * size)
    _write_parted(path, numbers.view(np.uint64)[:, None], bounds)


def read_part(path: Path, part: int, parts: int) -> NDArray[np.uint64]:
    """[rows, columns] one part of a file that is sorted into `parts`."""
    with open(path, "rb") as file:
        width = int(np.fromfile(file, np.int64, 1)[0])
        file.seek(_WORD * (1 + part))
        first, end = np.fromfile(file, np.int64, 2).tolist()
        file.seek(_WORD * (2 + parts + width * first))
        return np.fromfile(file, np.uint64, width * (end - first)).reshape(-1, width)


def _write_parted(path: Path, rows: NDArray[np.uint64], bounds: NDArray[np.int64]) -> None:
    """Write rows [rows, columns], of which part `p` is `rows[bounds[p] : bounds[p + 1]]`: the number of
    columns, the bounds, then the rows, all numbers of 8 bytes.
    """
    with rename_into(path) as draft, open(draft, "wb") as file:
        np.array([rows.shape[1], *bounds], np.int64).tofile(file)
        rows.tofile(file)


def _parted(preparation: Preparation, share: Share, name: str) -> Path:
    return output(preparation, share).with_suffix(f".{name}")


def _bounds(sorted_keys: Hashes, parts: int) -> NDArray[np.int64]:
    """[parts + 1] where the parts of ascending keys begin: equal ranges of the keys' high 32 bits."""
    part = ((sorted_keys >> _SHIFT) * np.uint64(parts)) >> _SHIFT
    return np.searchsorted(part, np.arange(parts + 1, dtype=np.uint64))


def _heads(columns: Sequence[Hashes]) -> NDArray[np.bool_]:
    """[rows] of sorted rows: is this the first row of its key?"""
    heads = np.zeros(len(columns[0]), np.bool_)
    heads[:1] = True
    for column in columns:
        heads[1:] |= column[1:] != column[:-1]
    return heads


def _least(values: NDArray[np.int64], heads: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[keys] the least value of each key, of values that are sorted by key."""
    return np.minimum.reduceat(values, np.flatnonzero(heads)) if len(values) else values
