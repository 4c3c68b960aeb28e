"""Documents out of tables: CSV, TSV, Parquet, and the Arrow files of a Hugging Face `datasets` folder."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from data.document import Document, from_record, origin_of
from data.recipe import Recipe
from data.sources import InputFile
from data.streams import open_bytes
from data.tally import Tally
from data.units import Piece

# Columns wide enough for a whole document; the csv module's own limit is 128 KiB.
csv.field_size_limit(1 << 30)


def separated(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    file = piece.file
    with open_bytes(file.path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.DictReader(text, delimiter="\t" if file.kind == "tsv" else ",")
        _need_column(list(rows.fieldnames or []), file, recipe)
        for number, row in enumerate(rows):
            document = from_record(dict(row), origin_of(file, row=number), recipe, tally)
            if document is not None:
                yield document


def _need_column(columns: list[str], file: InputFile, recipe: Recipe) -> None:
    if recipe.text_field not in columns:
        raise ValueError(
            f"{file.path} has no column {recipe.text_field!r}: give text_field as one of {', '.join(columns)}"
        )


def parquet(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    import pyarrow.parquet

    with open_bytes(piece.file.path) as stream, _damage():
        table = pyarrow.parquet.ParquetFile(stream)
        names = list(table.schema_arrow.names)
        _need_column(names, piece.file, recipe)
        row = sum(table.metadata.row_group(group).num_rows for group in range(piece.start))
        batches = table.iter_batches(
            batch_size=1024, row_groups=list(range(piece.start, piece.end)), columns=_columns(names, recipe)
        )
        yield from _rows(batches, row, piece.file, recipe, tally)


def _columns(names: list[str], recipe: Recipe) -> list[str]:
    wanted = (recipe.text_field, recipe.licence_field, recipe.language_field)
    return [name for name in names if name in wanted]


def _rows(
    batches: Iterable[Any], row: int, file: InputFile, recipe: Recipe, tally: Tally
) -> Iterator[Document]:
    for batch in batches:
        for record in batch.to_pylist():
            document = from_record(record, origin_of(file, row=row), recipe, tally)
            row += 1
            if document is not None:
                yield document


@contextmanager
def _damage() -> Iterator[None]:
    """Arrow's errors are ValueErrors, but a damaged file is no mistake of the caller's."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        raise OSError(str(error).splitlines()[0]) from None


def arrow(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """A Hugging Face `datasets` folder keeps Arrow's streaming format; Arrow's own file format is read as
    well.
    """
    import pyarrow

    with open_bytes(piece.file.path) as stream, _damage():
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pyarrow.ipc.open_file(stream) if is_file else pyarrow.ipc.open_stream(stream)
        names = list(reader.schema.names)
        _need_column(names, piece.file, recipe)
        columns = _columns(names, recipe)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        yield from _rows((batch.select(columns) for batch in batches), 0, piece.file, recipe, tally)
