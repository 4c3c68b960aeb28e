"""What a run must know of each block before its documents are read: how many there are, and of which sorts.

A *block* is up to `block_documents` neighbouring documents of one shard: the unit that packing stays inside
and that is shuffled.

block_places(documents, size)            which documents of which shard each block is
block_bounds(documents, size)            the same of one shard, as `count_blocks` takes it
count_blocks(manifest, index, bounds)    the counts of the blocks of one shard
text_ids(manifest, index)                how many ids each document has, without its marks
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data.corpus.columns import FIRST_TEXT, MARKED, MEDIA
from data.corpus.manifest import TOKENS, Manifest

Blocks = Mapping[str, np.ndarray]
"""Name of a count → the count of each block, int64 [blocks]:

inputs     ids and a separator, of the documents that have ids
filled     documents that have ids or a picture; pairs, marked: those of them that have two texts, marks
pictures   documents that have a picture; picture_pairs, picture_marked: likewise
"""
COUNTS = ("inputs", "filled", "pairs", "marked", "pictures", "picture_pairs", "picture_marked")


def block_places(documents: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each block the shard, the first document in that shard and the number of documents, int64 [blocks].

    documents: of each shard, int64 [shards].
    size: documents of a block, at most.
    """
    blocks = -(-documents // size)
    shard = np.repeat(np.arange(len(documents)), blocks)
    first = (np.arange(len(shard)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * size
    return shard, first, np.minimum(size, documents[shard] - first)


def block_bounds(documents: int, size: int) -> np.ndarray:
    """Block b of a shard holds documents [bounds[b], bounds[b + 1]) of it, int64 [blocks + 1].

    documents: of the shard.
    size: documents of a block, at most.
    """
    return np.append(np.arange(0, documents, size), documents)


def count_blocks(manifest: Manifest, index: np.ndarray, bounds: np.ndarray) -> Blocks:
    """The counts of the blocks of one shard.

    index: of the shard, int64 [rows, documents].
    bounds: block b holds documents [bounds[b], bounds[b + 1]) of it, int64 [blocks + 1].
    """
    ids = text_ids(manifest, index)

    def has(column: str, least: int) -> np.ndarray:
        row = manifest.row(column)
        return np.zeros(len(ids), dtype=bool) if row is None else index[row] >= least

    pictured, pair, marked = has(MEDIA[1], 1), has(FIRST_TEXT, 0), has(MARKED, 0)
    filled = (ids > 0) | pictured
    found = (ids + (ids > 0), filled, filled & pair, filled & marked, pictured, pictured & pair)
    counts = {}
    for name, values in zip(COUNTS, (*found, pictured & marked)):
        before = np.concatenate(([0], np.cumsum(values)))
        counts[name] = np.diff(before[bounds]).astype(np.int64)
    return counts


def text_ids(manifest: Manifest, index: np.ndarray) -> np.ndarray:
    """How many ids of each document are of its text, and no marks, int64 [documents].

    index: columns of the corpus's index, [rows, documents].
    """
    tokens = index[TOKENS].astype(np.int64)
    row = manifest.row(MARKED)
    if row is None:
        return tokens
    marked = index[row].astype(np.int64)
    return np.where(marked >= 0, marked, tokens)
