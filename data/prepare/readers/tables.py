"""Documents of tables: CSV, TSV, Parquet, and the Arrow files of a Hugging Face `datasets` folder."""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from data.corpus.columns import CLASS, CLASS_NUMBER
from data.opening import open_bytes
from data.prepare.document import Document
from data.prepare.readers.parquet_pages import MOST_GROWTH, PAGE_BYTES, repeated_bytes
from data.prepare.readers.records import from_record
from data.prepare.readers.table_columns import class_names, columns_to_read, need_column
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import decoded_row, open_text
from data.prepare.sources.looks import binary_format
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.units import FileRange

_BATCH_ROWS, _BATCH_BYTES = 1024, 16 << 20
_BUFFER_BYTES = 1 << 20
_SHARED_BYTES = 64 << 20  # of a batch whose rows share one value, each row counted with the whole value


def separated(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield a document for each row of CSV or TSV; `;` and `|` as delimiters are found by the header."""
    file, limit = file_range.file, recipe.row_bytes
    csv.field_size_limit(limit)
    stream, head = open_text(file.path, recipe)
    with stream:
        if known := binary_format(head):
            raise ValueError(f"{file.path} is no table of text: by its first bytes it is {known}")
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        bounded = _bounded(text, limit)
        header = next(bounded, "")
        if not header.strip():
            tally.add("removed.empty", 0, file.relative)
            return
        delimiter = _delimiter(header, file, recipe)
        lines = _Lines(itertools.chain([header], bounded))
        rows = _rows_of(lines, delimiter)
        number = -1
        try:
            # With a tally of its own, which is dropped: a header is no document.
            names = decoded_row(next(rows), recipe, Tally(), f"{file.relative}, line 1")
            if names is None:
                raise ValueError(
                    f"{file.path}: its header is not in the encoding {recipe.encoding}: name the file's with "
                    "--encoding, or leave it out with --exclude"
                )
            need_column(names, file, recipe)
            for number, values in enumerate(rows):
                where = f"{file.relative}, row {number}, ends in line {lines.number}"
                if len(values) > len(names):
                    tally.add("removed.too_many_columns", 0, f"{where}: {len(values)} for {len(names)}")
                    continue
                read = decoded_row(values, recipe, tally, where)
                if read is None:
                    continue
                document = from_record(dict(zip(names, read)), file, where, recipe, tally, row=number)
                if document is not None:
                    yield document
        except csv.Error as error:
            raise OSError(f"row {number + 1}, near line {lines.number}: {error}") from None


class _Lines:
    """An iterator over lines that remembers where it is.

    line: the last line.
    number: how many lines so far.
    ended: was another line wanted when there was none?
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.line, self.number, self.ended = "", 0, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.ended = True
        self.line = next(self._lines)
        self.ended = False
        self.number += 1
        return self.line


def _rows_of(lines: _Lines, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows; empty lines are skipped.

    A field such as `"quoted" words` is accepted within one line. Over several lines it is an error: a quote
    that was not meant to open a field would take in all rows up to the next quote.
    """
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        before = lines.number
        try:
            row = next(rows, None)
        except csv.Error:
            again = _Lines([lines.line])
            row = next(csv.reader(again, delimiter=delimiter))
            if lines.ended or lines.number > before + 1 or again.ended:
                raise
        if row is None:
            return
        if row:
            yield row


def _bounded(text: io.TextIOWrapper, limit: int) -> Iterator[str]:
    while line := text.readline(limit):
        if len(line) == limit and not line.endswith("\n"):
            raise csv.Error(f"a line is longer than {limit:,} characters: raise --max-document-bytes")
        yield line


def _delimiter(header: str, file: InputFile, recipe: Recipe) -> str:
    """The delimiter that gives the header the text's column, or else the most columns."""
    usual = "\t" if file.kind == "tsv" else ","
    found = {sign: next(csv.reader([header], delimiter=sign), []) for sign in (usual, ",", ";", "\t", "|")}
    return max(found, key=lambda sign: (recipe.text_field in found[sign], len(found[sign])))


def parquet(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield a document for each row."""
    import pyarrow.parquet

    with open_bytes(file_range.file.path) as stream, _damage():
        # Without a buffer Arrow reads all pictures of a row group at once.
        table = pyarrow.parquet.ParquetFile(stream, buffer_size=_BUFFER_BYTES if recipe.image_field else 0)
        columns = columns_to_read(table.schema_arrow, file_range.file, recipe)
        groups = list(range(file_range.start, file_range.end))
        row = sum(table.metadata.row_group(group).num_rows for group in range(file_range.start))
        batches = table.iter_batches(
            batch_size=_batch_rows(table.metadata, groups, columns, file_range.file.path),
            row_groups=groups,
            columns=columns,
        )
        classes = class_names(table.schema_arrow, recipe)
        yield from _rows(batches, row, file_range.file, recipe, tally, classes)


def _batch_rows(metadata: Any, groups: list[int], columns: list[str], path: str) -> int:
    """The number of rows that take some megabytes, also where many rows share one stored value."""
    with open_bytes(path) as pages:
        shared = [
            repeated_bytes(pages, column)
            for group in groups
            for place in range(metadata.num_columns)
            if (column := metadata.row_group(group).column(place)).path_in_schema.split(".")[0] in columns
            # Reading the page headers of a remote file costs as much as its pages: only where the footer
            # shows growth.
            and ("://" not in path or _grows(column))
        ]
    most = min(_BATCH_ROWS, _SHARED_BYTES // max([1, *shared]))
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    return max(1, min(most, rows * _BATCH_BYTES // max(1, size)))


def _grows(column: Any) -> bool:
    return column.total_uncompressed_size > max(PAGE_BYTES, MOST_GROWTH * column.total_compressed_size)


def _rows(
    batches: Iterable[Any], row: int, file: InputFile, recipe: Recipe, tally: Tally, classes: list[str]
) -> Iterator[Document]:
    """Yield the documents of the rows; `row`: the number of the first; `classes`: names of its numbers."""
    for batch in batches:
        step = max(1, batch.num_rows * _BATCH_BYTES // max(1, batch.nbytes))
        for start in range(0, batch.num_rows, step):
            for record in _records(batch.slice(start, step)):
                where = f"{file.relative}, row {row}"
                document = from_record(record, file, where, recipe, tally, row=row)
                row += 1
                if document is not None:
                    number = document.origin.get(CLASS_NUMBER, len(classes))
                    if number < len(classes):
                        document.origin[CLASS] = classes[number]
                    yield document


def _records(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch. Where a text is not UTF-8, all texts are bytes, which `from_record` decodes."""
    import pyarrow

    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        raw = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
        columns = [column.cast(raw.get(column.type, column.type)) for column in batch.columns]
        return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()


@contextmanager
def _damage() -> Iterator[None]:
    """Turn Arrow's errors to OSError: they are ValueErrors, but a damaged file is not the user's mistake."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        raise OSError(str(error).splitlines()[0]) from None
    except UnicodeDecodeError as error:  # in a field of a field
        raise OSError(f"a text is not UTF-8: {error}") from None


def _stream(file: InputFile, recipe: Recipe) -> Any:
    """The file. With pictures a local one is mapped: a batch of them need not fit into memory."""
    import pyarrow

    mapped = recipe.image_field and "://" not in file.path
    return pyarrow.memory_map(file.path) if mapped else open_bytes(file.path)


def arrow(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield a document for each row of Arrow's streaming format, which Hugging Face's `datasets` writes, or
    of Arrow's file format.
    """
    import pyarrow

    with _stream(file_range.file, recipe) as stream, _damage():
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pyarrow.ipc.open_file(stream) if is_file else pyarrow.ipc.open_stream(stream)
        columns = columns_to_read(reader.schema, file_range.file, recipe)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        classes = class_names(reader.schema, recipe)
        chosen = (batch.select(columns) for batch in batches)
        yield from _rows(chosen, 0, file_range.file, recipe, tally, classes)
