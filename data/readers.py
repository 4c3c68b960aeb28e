"""Documents out of every kind of file that `prepare` reads, as a stream that never holds a whole file.

What cannot be read as a document is counted in the tally, never dropped in silence; a damaged file stops
the run.
"""

import csv
import lzma
import zlib
from collections.abc import Callable, Iterator

from data import read_ids, read_json, read_samples, read_tables, read_text
from data.document import Document
from data.recipe import Recipe
from data.tally import Tally
from data.units import Piece

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
