"""The survey: the first of two passes, where deduplication or the training of a tokenizer needs one.

    unit → cleaned documents → OUT/.prepare/survey/NNNNNN.arrow            the spool
                             → …/NNNNNN.content.npy, NNNNNN.minhash.npy    hashes of the documents
    all units → find_duplicates → …/NNNNNN.keep.npy                        which documents stay

The corpus is cleaned once, on all cores; the second pass (`data.prepare.encode`) reads the spools.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from data.prepare import spool
from data.prepare.cleaning import clean, dedup
from data.prepare.document import Document
from data.prepare.preparation import Preparation, unit_documents, write_json
from data.prepare.tally import Tally
from data.prepare.units import Advance, Unit


def survey_unit(preparation: Preparation, unit: Unit, advance: Advance) -> None:
    """Clean one unit into its spool, store hashes to find duplicates by, and write the unit's record last."""
    record = preparation.record(unit, "survey")
    if record.exists():
        advance(-1)
        return
    near = (
        dedup.bands(preparation.recipe.near_threshold) if preparation.recipe.deduplicate == "near" else (0, 0)
    )
    contents: list[tuple[int, int, int]] = []
    minhashes: list[np.ndarray] = []
    nothing = np.zeros(near[0] * near[1], np.uint32)
    tally = Tally()
    keep = clean.cleaner(preparation.recipe, preparation.evaluation)
    with spool.SpoolWriter(record.with_suffix(".arrow")) as kept:
        for document in unit_documents(preparation, unit, tally):
            size = len(document.text)
            advance(size)
            tally.add("read", size)
            if not keep(document, tally):
                continue
            kept.add(document)
            high, low = divmod(xxhash.xxh3_128_intdigest(document.content), 1 << 64)
            contents.append((high, low, len(document.text)))
            if len(nothing):
                found = dedup.signature(document.text, len(nothing)) if document.is_text else None
                minhashes.append(nothing if found is None else found)
    columns = np.array(contents, np.uint64).reshape(-1, 3).T
    np.save(record.with_suffix(".content.npy"), np.ascontiguousarray(columns), allow_pickle=False)
    np.save(record.with_suffix(".minhash.npy"), np.array(minhashes, np.uint32).reshape(-1, len(nothing) or 1))
    write_json(record, {"tally": tally.as_dict()})
    advance(-1)


def find_duplicates(preparation: Preparation, units: list[Unit]) -> None:
    """Decide over the whole corpus which documents are left out as duplicates, if no attempt has yet."""
    survey = preparation.scratch / "survey"
    if preparation.recipe.deduplicate and not (survey / "duplicates.json").exists():
        threshold = preparation.recipe.near_threshold if preparation.recipe.deduplicate == "near" else None
        dedup.write_tally(survey, dedup.find(survey, [unit.number for unit in units], threshold))


def surviving(preparation: Preparation, unit: Unit) -> Iterator[tuple[int, Document]]:
    """Yield (place in the spool, document) of a unit's documents that are no duplicates."""
    record = preparation.record(unit, "survey")
    keep = record.with_suffix(".keep.npy")
    verdicts = np.load(keep) if preparation.recipe.deduplicate else None
    for place, document in enumerate(spool.read(record.with_suffix(".arrow"))):
        if verdicts is None or verdicts[place] == dedup.KEPT:
            yield place, document


def tally_of(preparation: Preparation, units: list[Unit]) -> Tally:
    """The counts of the whole survey, in the order of the corpus."""
    tally = Tally()
    if preparation.surveyed:
        for unit in units:
            tally.merge(json.loads(preparation.record(unit, "survey").read_text())["tally"])
        found: Path = preparation.scratch / "survey" / "duplicates.json"
        if found.exists():
            tally.merge(json.loads(found.read_text()))
    return tally
