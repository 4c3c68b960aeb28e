"""The first of two passes, where cleaning or deduplication asks for one: clean, fingerprint, put by.

A corpus is cleaned once, on all cores, into a spool; what says whether documents are the same lies beside it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from data.prepare import spool
from data.prepare.cleaning import clean, dedup
from data.prepare.job import Job, content, unit_documents, write_json
from data.prepare.readers.document import Document
from data.prepare.report.tally import Tally
from data.prepare.units import Unit
from data.prepare.workers import Report


def survey_unit(job: Job, unit: Unit, report: Report) -> None:
    """Cleans one unit into its spool; its record comes last."""
    record = job.record(unit, "survey")
    if record.exists():
        report(-1)
        return
    near = dedup.bands(job.recipe.near_threshold) if job.recipe.deduplicate == "near" else (0, 0)
    contents: list[tuple[int, int, int]] = []
    minhashes: list[np.ndarray] = []
    nothing = np.zeros(near[0] * near[1], np.uint32)
    tally = Tally()
    keep = clean.cleaner(job.recipe, job.evaluation)
    with spool.SpoolWriter(record.with_suffix(".arrow")) as kept:
        for document in unit_documents(job, unit, tally):
            size = len(document.text)
            report(size)
            tally.add("read", size)
            if not keep(document, tally):
                continue
            kept.add(document)
            high, low = divmod(xxhash.xxh3_128_intdigest(content(document)), 1 << 64)
            contents.append((high, low, len(document.text)))
            if len(nothing):
                is_text = document.ids is None and not document.media
                found = dedup.signature(document.text, len(nothing)) if is_text else None
                minhashes.append(nothing if found is None else found)
    columns = np.array(contents, np.uint64).reshape(-1, 3).T
    np.save(record.with_suffix(".content.npy"), np.ascontiguousarray(columns), allow_pickle=False)
    np.save(record.with_suffix(".minhash.npy"), np.array(minhashes, np.uint32).reshape(-1, len(nothing) or 1))
    write_json(record, {"tally": tally.as_dict()})
    report(-1)


def find_duplicates(job: Job, units: list[Unit]) -> None:
    """Decides over the whole corpus which documents go; nothing to do for a run that got past it before."""
    survey = job.scratch / "survey"
    if job.recipe.deduplicate and not (survey / "duplicates.json").exists():
        threshold = job.recipe.near_threshold if job.recipe.deduplicate == "near" else None
        dedup.write_tally(survey, dedup.find(survey, [unit.number for unit in units], threshold))


def surviving(job: Job, unit: Unit) -> Iterator[tuple[int, Document]]:
    """(place in the spool, document) of what is left of a unit after both passes."""
    record = job.record(unit, "survey")
    keep = record.with_suffix(".keep.npy")
    verdicts = np.load(keep) if job.recipe.deduplicate else None
    for place, document in enumerate(spool.read(record.with_suffix(".arrow"))):
        if verdicts is None or verdicts[place] == dedup.KEPT:
            yield place, document


def tally_of(job: Job, units: list[Unit]) -> Tally:
    """All that the survey counted, in the order of the corpus."""
    tally = Tally()
    if job.surveyed:
        for unit in units:
            tally.merge(json.loads(job.record(unit, "survey").read_text())["tally"])
        found: Path = job.scratch / "survey" / "duplicates.json"
        if found.exists():
            tally.merge(json.loads(found.read_text()))
    return tally
