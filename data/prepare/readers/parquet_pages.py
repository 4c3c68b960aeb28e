"""The decompressed sizes of a Parquet file's pages, read from the page headers without decompressing a page.

A header is a `PageHeader` of parquet-format's parquet.thrift in Thrift's compact protocol.
"""

from typing import IO, Any

# A page may have this many bytes, or this many times its bytes in the file, whichever is more.
PAGE_BYTES, MOST_GROWTH = 64 << 20, 100
# Bytes to read for a header, which has kilobytes of statistics: pyarrow writes 4 KiB of the least and of the
# greatest value.
_HEADER_BYTES = (1 << 12, 1 << 14, 1 << 20)
_TYPE, _UNPACKED, _PACKED, _DICTIONARY = 1, 2, 3, 2


def repeated_bytes(stream: IO[bytes], column: Any) -> int:
    """The most bytes that one stored value of a column chunk, shared by many rows, may have.

    A value is shared through a dictionary, or because a value is coded by its difference from the one before.
    0 where each row has bytes of its own.

    stream: the Parquet file.
    column: the metadata of the column chunk.

    Raises OSError, before anything is decompressed, for a page that grows beyond the limits above.
    """
    at = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < at:  # some writers state 0 for none
        at = column.dictionary_page_offset
    end, dictionary, largest = at + column.total_compressed_size, 0, 0
    while at < end:
        header, size = _header(stream, at, end)
        packed, unpacked = header.get(_PACKED, 0), header.get(_UNPACKED, 0)
        if unpacked > max(PAGE_BYTES, MOST_GROWTH * packed):
            raise OSError(
                f"a page of column {column.path_in_schema} grows from {packed:,} bytes to {unpacked:,}: "
                "leave the file out with --exclude, or write it anew with smaller pages"
            )
        largest = max(largest, unpacked)
        if header.get(_TYPE) == _DICTIONARY:
            dictionary = unpacked
        at += size + packed
    return largest if "DELTA_BYTE_ARRAY" in column.encodings else dictionary


def _header(stream: IO[bytes], at: int, end: int) -> tuple[dict[int, int], int]:
    """(field → integer of the header, its bytes). Long statistics need a second, longer read."""
    for most in _HEADER_BYTES:
        stream.seek(at)
        raw = stream.read(min(most, end - at))
        try:
            return _struct(raw, 0)
        except IndexError:
            pass
    raise OSError(f"the page header at byte {at} cannot be read")


def _struct(raw: bytes, at: int) -> tuple[dict[int, int], int]:
    """(field → integer, place after the struct). Raises IndexError where `raw` ends within the struct."""
    numbers: dict[int, int] = {}
    field = 0
    while kind := raw[at] & 15:
        step = raw[at] >> 4
        at += 1
        if step:
            field += step
        else:
            field, at = _integer(raw, at)
        if kind in (4, 5, 6):
            numbers[field], at = _integer(raw, at)
        else:
            at = _behind(raw, at, kind)
    return numbers, at + 1


def _behind(raw: bytes, at: int, kind: int) -> int:
    """The place after a value of one of the Thrift types that a page header has."""
    if kind in (1, 2):  # true and false are types of their own, without a value
        return at
    if kind == 3:
        return at + 1
    if kind == 8:
        size, at = _varint(raw, at)
        return at + size
    if kind == 12:
        return _struct(raw, at)[1]
    raise OSError(f"a page header has a field of kind {kind}, which none has")


def _integer(raw: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(raw, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
