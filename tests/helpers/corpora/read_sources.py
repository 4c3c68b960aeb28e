"""Sources read document by document, without a corpus: what the tests of readers share."""

import json
from pathlib import Path

import webdataset

from data.prepare.document import Document
from data.prepare.readers.dispatch import documents
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import expand
from data.prepare.tally import Tally
from data.prepare.units import cut_into_units

TEXTS = ["plain", "two\nlines\n", "ünï\tcödé 東京 🌱", 'quote " and , comma', "x" * 3000, " ", "last"]


def read(
    specs: list[Path | str], unit_bytes: int = 1 << 30, **recipe: object
) -> tuple[list[Document], Tally]:
    """All documents of the sources, read unit by unit, and what was counted."""
    chosen = Recipe(**recipe)  # type: ignore[arg-type]
    tally = Tally()
    units = cut_into_units(expand([str(spec) for spec in specs], chosen), unit_bytes, chosen)
    return [d for unit in units for part in unit.ranges for d in documents(part, chosen, tally)], tally


def texts_of(found: list[Document]) -> list[str]:
    return [document.text for document in found]


def json_lines(texts: list[str], **more: object) -> bytes:
    return b"".join(json.dumps({"text": text, **more}).encode() + b"\n" for text in texts)


def write_tar(path: Path, samples: list[dict]) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
