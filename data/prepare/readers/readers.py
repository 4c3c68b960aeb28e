"""Documents out of every kind of file that `prepare` reads, as a stream that never holds a whole file.

What cannot be read as a document is counted in the tally, never dropped in silence; a damaged file stops
the run.
"""

import csv
import lzma
import zlib
from collections.abc import Callable, Iterator

from data.prepare.readers import ids as read_ids
from data.prepare.readers import json_rows as read_json
from data.prepare.readers import samples as read_samples
from data.prepare.readers import tables as read_tables
from data.prepare.readers import text as read_text
from data.prepare.readers.document import Document
from data.prepare.recipe import Recipe
from data.prepare.report.tally import Tally
from data.prepare.units import Piece

READERS: dict[str, Callable[[Piece, Recipe, Tally], Iterator[Document]]] = {
    "text": read_text.text_files,
    "jsonl": read_json.lines,
    "json": read_json.array,
    "ids": read_ids.ids,
    "fasta": read_text.fasta,
    "csv": read_tables.separated,
    "tsv": read_tables.separated,
    "parquet": read_tables.parquet,
    "arrow": read_tables.arrow,
    "image": read_samples.image,
    "webdataset": read_samples.webdataset,
}

# What the standard library and Arrow raise for a damaged or broken off file.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, csv.Error, OSError, ImportError)


def documents(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """All documents that begin in the piece, in order. Raises RuntimeError naming the file where it is
    damaged.
    """
    try:
        yield from READERS[piece.file.kind](piece, recipe, tally)
    except DAMAGE as error:
        raise unreadable(piece, error) from error
    except (RuntimeError, ValueError):
        raise
    except Exception as error:
        if "://" not in piece.file.path:
            raise  # a mistake of ours, with its traceback
        raise unreadable(piece, error) from error  # network libraries have errors of their own


def unreadable(piece: Piece, error: Exception) -> RuntimeError:
    """One line about a file that is damaged, gone or cut off."""
    return RuntimeError(f"{piece.file.path} cannot be read: {type(error).__name__}: {error}")
