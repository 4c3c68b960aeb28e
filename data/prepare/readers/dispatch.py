"""The reader of each kind of file: documents as a stream that never holds a whole file.

What cannot be read as a document is counted in the tally, never dropped in silence; a damaged file ends
`prepare`.
"""

import csv
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data.corpus.columns import CLASS
from data.prepare.document import Document
from data.prepare.readers import conll, ids, json_rows, samples, tables, text
from data.prepare.recipe import Recipe
from data.prepare.tally import Tally
from data.prepare.units import FileRange

READERS: dict[str, Callable[[FileRange, Recipe, Tally], Iterator[Document]]] = {
    "text": text.text_file,
    "jsonl": json_rows.lines,
    "json": json_rows.array,
    "conll": conll.columns,
    "ids": ids.id_file,
    "fasta": text.fasta,
    "csv": tables.separated,
    "tsv": tables.separated,
    "parquet": tables.parquet,
    "arrow": tables.arrow,
    "image": samples.image,
    "webdataset": samples.webdataset,
}

# What the standard library and Arrow raise for a file that is damaged or cut short.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, csv.Error, OSError, ImportError)


def documents(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield all documents that begin in the range, in order; count what is no document in `tally`.

    Raises RuntimeError, naming the file, where it is damaged; ValueError where the command must change.
    """
    with naming_damage(file_range):
        read = READERS[file_range.file.kind](file_range, recipe, tally)
        yield from _in_folders(read, recipe.label_folder, tally) if recipe.label_folder else read


@contextmanager
def naming_damage(file_range: FileRange) -> Iterator[None]:
    """Turn what a damaged file raises to RuntimeError, one line that names it."""
    try:
        yield
    except DAMAGE as error:
        raise unreadable(file_range, error) from error
    except (RuntimeError, ValueError):
        raise
    except Exception as error:
        if "://" not in file_range.file.path:
            raise  # a bug of this program, with its traceback
        raise unreadable(file_range, error) from error  # network libraries have errors of their own


def _in_folders(read: Iterator[Document], number: int, tally: Tally) -> Iterator[Document]:
    """The documents, each of the class that its folder `number` names: see `Recipe.label_folder`."""
    for document in read:
        folders = document.origin["path"].split("/")[:-1]
        if abs(number) <= len(folders):
            document.origin[CLASS] = folders[number - (number > 0)]
        else:
            tally.add("noted.no_class", len(document.text), document.where)
        yield document


def unreadable(file_range: FileRange, error: Exception) -> RuntimeError:
    """The error, in one line, for a file that is damaged, gone or cut short."""
    return RuntimeError(f"{file_range.file.path} cannot be read: {type(error).__name__}: {error}")
