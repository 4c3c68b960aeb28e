"""The survey: the first of two passes, where deduplication or the training of a tokenizer needs one.

    unit → cleaned documents → OUT/.prepare/survey/NNNNNN.arrow            the spool
                             → …/NNNNNN.content.bin, NNNNNN.minhash.bin    hashes of the documents
    all units → data.prepare.duplicates → …/duplicates/                    which documents stay

The corpus is cleaned once, on all cores; the second pass (`data.prepare.encode`) reads the spools.
"""

import json
import math
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import xxhash

from data.prepare import spool
from data.prepare.cleaning import clean, dedup
from data.prepare.document import Document
from data.prepare.duplicates import verdicts
from data.prepare.duplicates.shares import CONTENT, SIGNATURES
from data.prepare.preparation import Preparation, rename_into, unit_documents, write_json
from data.prepare.tally import Tally
from data.prepare.units import Advance, Unit


def survey_unit(preparation: Preparation, unit: Unit, advance: Advance) -> None:
    """Clean one unit into its spool, store hashes to find duplicates by, and write the unit's record last."""
    record = preparation.record(unit, "survey")
    if record.exists():
        advance(-1)
        return
    permutations = 0
    if preparation.recipe.deduplicate == "near":
        permutations = math.prod(dedup.bands(preparation.recipe.near_threshold))
    nothing = np.zeros(permutations, np.uint32)
    tally, documents = Tally(), 0
    keep = clean.cleaner(preparation.recipe, preparation.evaluation)
    with ExitStack() as stack:

        def renamed(suffix: str) -> Path:
            return stack.enter_context(rename_into(record.with_suffix(suffix)))

        content = stack.enter_context(open(renamed(f".{CONTENT}"), "wb"))
        minhash = stack.enter_context(open(renamed(f".{SIGNATURES}"), "wb")) if permutations else None
        kept = stack.enter_context(spool.SpoolWriter(renamed(".arrow")))
        for document in unit_documents(preparation, unit, tally):
            size = len(document.text)
            advance(size)
            tally.add("read", size)
            if not keep(document, tally):
                continue
            kept.add(document)
            documents += 1
            high, low = divmod(xxhash.xxh3_128_intdigest(document.content), 1 << 64)
            content.write(struct.pack("<3Q", high, low, len(document.text)))
            if minhash is not None:
                found = dedup.signature(document.text, permutations) if document.is_text else None
                minhash.write((nothing if found is None else found).tobytes())
    write_json(record, {"tally": tally.as_dict(), "documents": documents})
    advance(-1)


def surviving(preparation: Preparation, unit: Unit) -> Iterator[tuple[int, Document]]:
    """Yield (place in the spool, document) of a unit's documents that are no duplicates."""
    record = preparation.record(unit, "survey")
    found = verdicts.of_unit(preparation, unit) if preparation.recipe.deduplicate else None
    for place, document in enumerate(spool.read(record.with_suffix(".arrow"))):
        if found is None or found[place] == dedup.KEPT:
            yield place, document


def tally_of(preparation: Preparation, units: list[Unit]) -> Tally:
    """The counts of the whole survey, in the order of the corpus."""
    tally = Tally()
    if preparation.surveyed:
        for unit in units:
            tally.merge(json.loads(preparation.record(unit, "survey").read_text())["tally"])
        if preparation.recipe.deduplicate:
            tally.merge(verdicts.found(preparation))
    return tally
