"""The documents of a corpus as a packing takes them."""

from __future__ import annotations

import numpy as np

from data.corpus.columns import FIRST_TEXT, MARKED, MEDIA
from data.corpus.listing.blocks import text_ids
from data.corpus.manifest import Manifest
from data.stream.packing.kinds import PACKINGS
from data.stream.packing.packing import Documents, layout_lengths


def documents_of(
    manifest: Manifest,
    index: np.ndarray,
    bounds: np.ndarray,
    kind: str,
    key: int = 0,
    pictures: bool = False,
) -> Documents:
    """Documents as a packing takes them.

    manifest: of their corpus.
    index: their columns of the corpus's index, int64 [rows, documents].
    bounds: block b of them holds documents [bounds[b], bounds[b + 1]).
    kind: the packing. Where it gives each document a window, a picture without a caption has one too.
    key: what crops are drawn from.
    pictures: does a document without a picture take no room?
    """
    lengths = layout_lengths(text_ids(manifest, index))
    media = manifest.row(MEDIA[1])
    if PACKINGS[kind].alone and media is not None:
        lengths = np.maximum(lengths, index[media] > 0)
        if pictures:
            lengths[index[media] == 0] = 0
    texts = manifest.row(FIRST_TEXT)
    first_text = np.full_like(lengths, -1) if texts is None else index[texts]
    marks = manifest.row(MARKED)
    marked = np.zeros(len(lengths), dtype=bool) if marks is None else index[marks] >= 0
    return Documents(lengths, bounds, first_text, marked, key)
