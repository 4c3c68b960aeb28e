"""Exact duplicates: of documents with the same 128-bit hash of their content, the first stays."""

import numpy as np

from data.prepare.cleaning.dedup import KEPT, SAME
from data.prepare.duplicates import exchange
from data.prepare.duplicates.shares import HIGH, LOW, Share, contents, output, write_rows
from data.prepare.preparation import Preparation
from data.prepare.units import Advance


def send(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Send the hashes of a share's documents, with the documents' numbers."""
    if not output(preparation, share).exists():
        found = contents(preparation, share)
        exchange.send(preparation, share, (found[HIGH], found[LOW]), share.documents)
    advance(-1)


def mark(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Write the share's verdicts, uint8 [documents]: KEPT or SAME."""
    if not output(preparation, share).exists():
        first = exchange.answers(preparation, share)
        verdicts = np.where(first == share.documents, KEPT, SAME).astype(np.uint8)
        write_rows(output(preparation, share), verdicts)
    advance(-1)
