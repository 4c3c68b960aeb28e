"""Documents of files of token ids: NumPy's `.npy`, nanoGPT's `.bin` (numbers and nothing else) and llm.c's
(the same after a header of 1024 bytes). The separator's id ends a document.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from data.opening import open_bytes
from data.prepare.document import Document
from data.prepare.readers.records import origin_of
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import InputFile, TokenIds
from data.prepare.tally import Tally
from data.prepare.units import FileRange

_CHUNK_IDS = 1 << 20
_SAMPLE_BYTES = 1 << 18
# The first number of llm.c's and modded-nanogpt's files → the type of the ids.
_MAGIC = {20240520: "<u2", 20240801: "<u4"}
_LLM_C_HEADER_BYTES = 1024


@dataclass(frozen=True)
class IdsFormat:
    """How the ids are stored in a file: `count` numbers of `dtype` from byte `begins`."""

    dtype: np.dtype
    begins: int
    count: int


def id_file(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield the documents that begin in the range.

    Raises ValueError, with the position, for an id that the tokenizer does not have, and for a document
    longer than `max_document_bytes`.
    """
    file = file_range.file
    if file.tokens is None:
        raise ValueError(
            f"{file.path} holds token ids, by its name: give the tokenizer that made them with --tokenizer "
            "FILE, or leave the file out with --exclude"
        )
    ids_format = format_of(file, recipe)
    item, whole = ids_format.dtype.itemsize, file_range.end >= file.bytes
    first = max(0, -(-(file_range.start - ids_format.begins) // item))
    end = ids_format.count if whole else max(0, -(-(file_range.end - ids_format.begins) // item))
    if first >= min(end, ids_format.count):  # the range may end within the header
        return
    at = max(0, first - 1)  # the id before `first` may be the separator before a document
    begins = 0 if not first else -1
    parts: list[np.ndarray] = []
    held = 0
    with open_bytes(file.path) as stream:
        stream.seek(ids_format.begins + at * item)
        while len(chunk := _read(stream, ids_format, at)):
            _check(chunk, at, file, file.tokens, ids_format)
            start = 0
            for place in [*np.flatnonzero(chunk == file.tokens.separator).tolist(), len(chunk)]:
                if begins >= 0:
                    parts.append(chunk[start:place])
                    held += place - start
                    if held * item > recipe.max_document_bytes:
                        raise ValueError(_too_long(file, begins, file.tokens, recipe))
                if place == len(chunk):
                    break
                if held:
                    yield _document(file, begins, parts)
                begins, start, parts, held = at + place + 1, place + 1, [], 0
                if begins >= end:
                    return
            at += len(chunk)
    if held:
        yield _document(file, begins, parts)


def _read(stream: IO[bytes], ids_format: IdsFormat, at: int) -> np.ndarray:
    want = min(_CHUNK_IDS, ids_format.count - at)
    raw = stream.read(want * ids_format.dtype.itemsize)
    if len(raw) < want * ids_format.dtype.itemsize:
        raise EOFError(f"{ids_format.count:,} ids were to come, and the file ends before: cut short?")
    return np.frombuffer(raw, ids_format.dtype)


def _document(file: InputFile, begins: int, parts: list[np.ndarray]) -> Document:
    return Document("", origin_of(file, token=begins), np.concatenate(parts))


def _check(chunk: np.ndarray, at: int, file: InputFile, tokens: TokenIds, ids_format: IdsFormat) -> None:
    wrong = np.flatnonzero((chunk >= tokens.vocab) | (chunk < 0))
    if len(wrong):
        raise ValueError(
            f"{file.path}: the id at position {at + int(wrong[0]):,} is {int(chunk[wrong[0]])} (read as "
            f"{ids_format.dtype.name}), and the tokenizer has {tokens.vocab:,}: give the tokenizer that made "
            "the ids with --tokenizer, their type with --ids-dtype, or leave the file out with --exclude"
        )


def _too_long(file: InputFile, begins: int, tokens: TokenIds, recipe: Recipe) -> str:
    return (
        f"{file.path}: no separator (id {tokens.separator}) ends the document that begins at position "
        f"{begins:,} within --max-document-bytes {recipe.max_document_bytes:,}: name the token that "
        "does with --separator, or raise --max-document-bytes"
    )


def format_of(file: InputFile, recipe: Recipe) -> IdsFormat:
    """The format of a file, from its header.

    For a `.bin` without a header: the widest type with which all sampled numbers are ids of the tokenizer.
    Numbers of two bytes, read as four, would be far too large.
    """
    with open_bytes(file.path) as stream:
        head = stream.read(_LLM_C_HEADER_BYTES)
        if head.startswith(b"\x93NUMPY"):
            stream.seek(0)
            return _numpy_format(stream, file)
        size = stream.seek(0, 2)
        numbers = np.frombuffer(head[: len(head) // 4 * 4], "<i4")
        if recipe.ids_dtype == "auto" and len(numbers) >= 3 and int(numbers[0]) in _MAGIC:
            ids_format = IdsFormat(np.dtype(_MAGIC[int(numbers[0])]), _LLM_C_HEADER_BYTES, int(numbers[2]))
            if size != ids_format.begins + ids_format.count * ids_format.dtype.itemsize:
                raise OSError(f"its header says {ids_format.count:,} ids, and the file has {size:,} bytes")
            return ids_format
        if recipe.ids_dtype != "auto":
            dtype = np.dtype(recipe.ids_dtype).newbyteorder("<")
        else:
            assert file.tokens is not None
            dtype = _widest(stream, size, file.tokens.vocab)
    if size % dtype.itemsize:
        raise ValueError(
            f"{file.path} has {size:,} bytes, which are no whole number of {dtype.name}: give --ids-dtype, "
            "or leave the file out with --exclude if it holds no token ids"
        )
    return IdsFormat(dtype, 0, size // dtype.itemsize)


def _numpy_format(stream: IO[bytes], file: InputFile) -> IdsFormat:
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
    except ValueError as error:
        raise OSError(f"not a .npy file: {error}") from None
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ValueError(
            f"{file.path} is {dtype}{list(shape)}, not a 1-D array of token ids: save the ids as one, or "
            "leave it out with --exclude"
        )
    return IdsFormat(dtype, stream.tell(), int(shape[0]))


def _widest(stream: IO[bytes], size: int, vocab: int) -> np.dtype:
    for dtype in (np.dtype("<i8"), np.dtype("<u4")):
        if size % dtype.itemsize:
            continue
        good = True
        for begin in {0, size // 2 // 8 * 8, max(0, (size - _SAMPLE_BYTES) // 8 * 8)}:
            stream.seek(begin)
            raw = stream.read(_SAMPLE_BYTES)
            sample: Any = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)
            good = good and bool(((sample >= 0) & (sample < vocab)).all())
        if good:
            return dtype
    return np.dtype("<u2")
