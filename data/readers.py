"""Documents out of every kind of file that `prepare` reads, as a stream that never holds a whole file.

What cannot be read as a document is counted in the tally, never dropped in silence; a damaged file stops
the run.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data.recipe import Recipe
from data.sources import InputFile, Piece
from data.tally import Tally

# Columns wide enough for a whole document; the csv module's own limit is 128 KiB.
csv.field_size_limit(1 << 30)


@dataclass(slots=True)
class Document:
    """One document. `origin` (source, path, and the place in it) goes into the corpus with it; `ids` are
    given for data that was tokenised before; `media` are members (extension → bytes) that travel beside the
    text.
    """

    text: str
    origin: dict[str, Any]
    ids: NDArray[np.integer] | None = None
    media: dict[str, bytes] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """For people."""
        return ":".join(str(value) for value in self.origin.values())


def documents(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """All documents that begin in the piece, in order. Raises RuntimeError naming the file where it is
    damaged.
    """
    try:
        yield from READERS[piece.file.kind](piece, recipe, tally)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, csv.Error, OSError, ImportError) as error:
        raise RuntimeError(f"{piece.file.path} cannot be read: {type(error).__name__}: {error}") from error


def open_bytes(path: str) -> IO[bytes]:
    """Opens a local path or URL for reading, decompressed."""
    raw: Any
    if "://" in path:
        import fsspec

        raw = fsspec.open(path, "rb").open()
    else:
        raw = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    name = path.lower()
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstandard(raw))
    if name.endswith(".bz2"):
        return bz2.BZ2File(raw)  # type: ignore[return-value]
    if name.endswith(".xz"):
        return lzma.LZMAFile(raw)  # type: ignore[return-value]
    return raw


class _Zstandard(io.RawIOBase):
    """The frames of a zstandard file. The library's own reader takes a file that was cut short for one that
    ended.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw = raw
        self._library = zstandard
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._fed = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with decompressed bytes; raises EOFError where the file is cut short."""
        while not self._ready:
            compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._fed = self._library.ZstdDecompressor().decompressobj(), False
            compressed = compressed or self._raw.read(1 << 17)
            if not compressed:
                if self._fed:
                    raise EOFError("the file ends within a zstandard frame: cut short?")
                return 0
            try:
                self._ready = memoryview(self._frame.decompress(compressed))
            except self._library.ZstdError as error:
                raise OSError(str(error)) from None
            self._fed = not self._frame.eof
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _origin(file: InputFile, **place: Any) -> dict[str, Any]:
    return {"source": file.source, "path": file.relative, **place}


def decode(raw: bytes, recipe: Recipe, tally: Tally, where: str) -> str | None:
    """UTF-8 (or what a byte order mark says) → text; None, counted, for what is binary or not to be
    repaired.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if raw.startswith(mark):
            try:
                return raw.decode(encoding)
            except UnicodeDecodeError:
                break
    if b"\0" in raw[: 1 << 13]:
        tally.add("removed.binary", len(raw), where)
        return None
    if recipe.undecodable == "skip":
        tally.add("removed.undecodable", len(raw), where)
        return None
    tally.add("changed.not_utf8", len(raw), where)
    return raw.decode("cp1252", errors="replace")


def whole(text: str, tally: Tally, where: str) -> str:
    """Text that UTF-8 can carry: half a surrogate pair or a byte that is not UTF-8, which JSON can smuggle
    in, becomes U+FFFD and is counted.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        tally.add("changed.not_unicode", len(text), where)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# Text files


def _text(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    file, limit = piece.file, recipe.max_document_bytes
    with open_bytes(file.path) as stream:
        if piece.start:
            _to_line_start(stream, piece.start, limit)
        ranged = piece.end < file.bytes or piece.start > 0
        part = 0
        at = stream.tell() if ranged else 0
        end = _line_start(file.path, piece.end, limit) if ranged and piece.end < file.bytes else -1
        while end < 0 or at < end:
            want = limit if end < 0 else min(limit, end - at)
            raw = stream.read(want)
            if not raw and (part or ranged):
                break
            if len(raw) == limit and at + want != end:
                raw += stream.readline(limit if end < 0 else min(limit, end - at - want))
                if not raw.endswith(b"\n"):
                    raw += _rest_of_character(stream, raw)
            more = len(raw) >= limit or part or ranged
            origin = _origin(file, **({"offset": at} if more else {}))
            at += len(raw)
            part += 1
            if more:
                tally.add("changed.cut_long_document", len(raw), f"{file.relative}:{origin['offset']}")
            text = decode(raw, recipe, tally, file.relative)
            if text is not None:
                yield Document(text, origin)
            if not raw:
                break


def _rest_of_character(stream: IO[bytes], raw: bytes) -> bytes:
    """The bytes that are missing from the UTF-8 character that `raw` ends in the middle of."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return stream.read(length - back) if length > back else b""
        if byte < 0x80:
            break
    return b""


def _to_line_start(stream: IO[bytes], offset: int, limit: int) -> None:
    """Moves to the first line that begins at `offset` or later: a function of the offset, so neighbours
    agree.
    """
    stream.seek(offset - 1)
    skipped = stream.readline(limit)
    if skipped.endswith(b"\n") or len(skipped) < limit:
        return
    # No line begins anywhere near: begin at a character instead.
    stream.seek(offset)
    while (byte := stream.read(1)) and 0x80 <= byte[0] < 0xC0:
        pass
    if byte:
        stream.seek(-1, io.SEEK_CUR)


def _line_start(path: str, offset: int, limit: int) -> int:
    with open_bytes(path) as stream:
        _to_line_start(stream, offset, limit)
        return stream.tell()


# Lines of JSON


def _jsonl(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    file = piece.file
    # The place of a line is its offset in the (decompressed) file, known without reading what comes before
    # it.
    with open_bytes(file.path) as stream:
        at = 0
        if piece.start:
            stream.seek(piece.start - 1)
            at = piece.start - 1 + len(stream.readline())
        whole_file = piece.end >= file.bytes
        while whole_file or at < piece.end:
            line = stream.readline()
            if not line:
                break
            offset, at = at, at + len(line)
            if line.isspace():
                continue
            document = _json_document(line, _origin(file, offset=offset), recipe, tally)
            if document is not None:
                yield document


def _json_document(line: bytes, origin: dict[str, Any], recipe: Recipe, tally: Tally) -> Document | None:
    where = f"{origin['path']}:{origin.get('offset', '')}"
    try:
        record = json.loads(line.decode("utf-8", errors="surrogateescape"))
    except ValueError:
        tally.add("removed.not_json", len(line), where)
        return None
    if not isinstance(record, dict):
        tally.add("removed.not_a_json_object", len(line), where)
        return None
    return _record(record, origin, recipe, tally)


def _record(record: dict[str, Any], origin: dict[str, Any], recipe: Recipe, tally: Tally) -> Document | None:
    text = record.get(recipe.text_field)
    for key, name in ((recipe.licence_field, "licence"), (recipe.language_field, "language")):
        if record.get(key) is not None:
            origin[name] = record[key] if isinstance(record[key], str) else str(record[key])
    document = Document("", origin)
    if not isinstance(text, str):
        fields = ", ".join(sorted(str(key) for key in record)[:8])
        tally.add(f"removed.no_{recipe.text_field}_field", 0, f"{document.where} (fields: {fields})")
        return None
    document.text = whole(text, tally, document.where)
    return document


# Tables


def _csv(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    file = piece.file
    with open_bytes(file.path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.DictReader(text, delimiter="\t" if file.kind == "tsv" else ",")
        _need_column(list(rows.fieldnames or []), file, recipe)
        for number, row in enumerate(rows):
            document = _record(dict(row), _origin(file, row=number), recipe, tally)
            if document is not None:
                yield document


def _need_column(columns: list[str], file: InputFile, recipe: Recipe) -> None:
    if recipe.text_field not in columns:
        raise ValueError(
            f"{file.path} has no column {recipe.text_field!r}: give text_field as one of {', '.join(columns)}"
        )


def row_groups(file: InputFile, unit_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of row groups that hold about `unit_bytes`, uncompressed."""
    import pyarrow.parquet

    try:
        with open_bytes(file.path) as stream:
            metadata = pyarrow.parquet.ParquetFile(stream).metadata
    except (OSError, pyarrow.ArrowException) as error:
        raise RuntimeError(f"{file.path} cannot be read as Parquet: {error}") from None
    first, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= unit_bytes:
            yield first, group + 1
            first, size = group + 1, 0
    if first < metadata.num_row_groups:
        yield first, metadata.num_row_groups


def _parquet(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    import pyarrow.parquet

    with open_bytes(piece.file.path) as stream:
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
            document = _record(record, _origin(file, row=row), recipe, tally)
            row += 1
            if document is not None:
                yield document


def _arrow(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """A Hugging Face `datasets` folder keeps Arrow's streaming format; Arrow's own file format is read as
    well.
    """
    import pyarrow

    with open_bytes(piece.file.path) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pyarrow.ipc.open_file(stream) if is_file else pyarrow.ipc.open_stream(stream)
        names = list(reader.schema.names)
        _need_column(names, piece.file, recipe)
        columns = _columns(names, recipe)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        yield from _rows((batch.select(columns) for batch in batches), 0, piece.file, recipe, tally)


# Sequences


def _fasta(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Protein and genomic sequences: a document a record, its lines joined; a long one is cut every
    `max_document_bytes`. What comes before the first ">" is counted."""
    file, limit = piece.file, recipe.max_document_bytes
    with open_bytes(file.path) as stream:
        at = 0
        if piece.start:
            stream.seek(piece.start - 1)
            at = piece.start - 1 + len(stream.readline())
        name, size, part = "", 0, 0
        lines: list[bytes] = []

        def emit() -> Document:
            origin = _origin(file, record=name, **({"part": part} if part else {}))
            return Document(b"".join(lines).decode("ascii", "replace"), origin)

        while True:
            line = stream.readline()
            offset, at = at, at + len(line)
            if not line or line.startswith(b">"):
                if name and lines:
                    yield emit()
                elif name and not part:
                    tally.add("removed.empty", 0, f"{file.relative}:{name}")
                if not line or (offset >= piece.end and piece.end < file.bytes):
                    return
                name, lines, size, part = line[1:].strip().decode("utf-8", "replace") or "unnamed", [], 0, 0
                continue
            if not name:
                if piece.start == 0 and line.strip():
                    tally.add("removed.before_first_record", len(line), file.relative)
                continue
            lines.append(line.strip())
            size += len(lines[-1])
            if size >= limit:
                tally.add("changed.cut_long_document", size, f"{file.relative}:{name}")
                yield emit()
                lines, size, part = [], 0, part + 1


# Pictures and WebDataset


def _image(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """A picture in a folder of its class; the text is the class."""
    file = piece.file
    with open_bytes(file.path) as stream:
        raw = stream.read()
    parts = file.relative.split("/")
    name = parts[-2] if len(parts) > 1 else file.source
    extension = file.relative.rsplit(".", 1)[-1].lower()
    yield Document(name, _origin(file, **{"class": name}), media={extension: raw})


def _webdataset(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    from data.wds import samples

    for key, members in samples(piece.file):
        document = _sample_document(key, members, piece.file, recipe, tally)
        if document is not None:
            yield document


def _sample_document(
    key: str, members: dict[str, bytes], file: InputFile, recipe: Recipe, tally: Tally
) -> Document | None:
    from data.wds import IMAGES, array

    document = Document("", _origin(file, key=key))
    size = sum(len(value) for value in members.values())
    document.media = {extension: value for extension, value in members.items() if extension in IMAGES}
    record: Any = {}
    if "json" in members:
        try:
            record = json.loads(members["json"])
        except ValueError:
            tally.add("removed.not_json", size, document.where)
            return None
    if isinstance(record, dict):
        for name, value in (("licence", recipe.licence_field), ("language", recipe.language_field)):
            if isinstance(record.get(value), str):
                document.origin[name] = record[value]
    if "npy" in members and not document.media:
        document.ids = array(members["npy"], f"{file.path} sample {key}")
        return document
    for extension in ("txt", "text", "caption"):
        if extension in members:
            text = decode(members[extension], recipe, tally, document.where)
            document.text = text or ""
            return document if text is not None else None
    if isinstance(record, dict) and isinstance(record.get(recipe.text_field), str):
        document.text = whole(record[recipe.text_field], tally, document.where)
        return document
    if document.media and "cls" in members:
        document.text = members["cls"].decode("utf-8", "replace").strip()
        document.origin["class"] = document.text
        return document
    tally.add("removed.no_text_in_sample", size, f"{document.where} (members: {', '.join(sorted(members))})")
    return None


READERS: dict[str, Callable[[Piece, Recipe, Tally], Iterator[Document]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "csv": _csv,
    "tsv": _csv,
    "fasta": _fasta,
    "parquet": _parquet,
    "arrow": _arrow,
    "image": _image,
    "webdataset": _webdataset,
}
