"""How much of what a corpus's documents ask is behind the end of a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.corpus.columns import MARKED
from data.corpus.corpus import Corpus
from data.corpus.manifest import OFFSET


@dataclass(frozen=True)
class LeftOut:
    """What rows of one document each do not show of a corpus with marks.

    documents: of the corpus, with marks.
    longer: those of them that are longer than a row.
    marks: marks behind a row's end.
    cut: documents with such a mark.
    """

    documents: int
    longer: int
    marks: int
    cut: int


def left_out(corpus: Corpus, ids: int, least: int) -> LeftOut:
    """Return what rows that show the first `ids` ids of each document leave out. Reads the marks of longer
    documents.

    least: the least mark that asks something.
    """
    row = corpus.manifest.row(MARKED)
    documents = longer = marks = cut = 0
    for shard in range(len(corpus.manifest.shards)) if row is not None else ():
        index = corpus.storage.index(shard).astype(np.int64)
        documents += int((index[row] >= 0).sum())
        places = np.flatnonzero(index[row] > ids)
        longer += len(places)
        view = corpus.storage.open(shard).view if len(places) else b""
        for offset, count in zip(index[OFFSET, places].tolist(), index[row, places].tolist()):
            width = corpus.dtype.itemsize
            behind = np.frombuffer(
                view[offset + (count + ids) * width : offset + 2 * count * width], corpus.dtype
            )
            asked = int((behind >= least).sum())
            marks, cut = marks + asked, cut + bool(asked)
    return LeftOut(documents, longer, marks, cut)
