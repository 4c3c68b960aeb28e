"""What the pages of a Parquet file grow to, by their headers, before any of them is decompressed.

A header is a `PageHeader` of parquet-format's parquet.thrift in Thrift's compact protocol.
"""

from typing import IO, Any

# A page may grow to this, or to so many times its bytes in the file, whichever is more.
PAGE_BYTES, MOST_GROWTH = 64 << 20, 100
# A header has up to some kilobytes of statistics: pyarrow's, 4 KiB of the least and of the greatest value.
_HEADER_BYTES = (1 << 12, 1 << 14, 1 << 20)
_TYPE, _UNPACKED, _PACKED, _DICTIONARY = 1, 2, 3, 2


def repeated_bytes(stream: IO[bytes], column: Any) -> int:
    """The largest value, in bytes, that many rows of a column chunk may share: one of its dictionary, or one
    coded by what it shares with that before it; 0 where rows have their own bytes. `column`: its metadata.

    Raises OSError, before anything is decompressed, for a page that grows beyond all measure.
    """
    at = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < at:  # 0: a writer that has none
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
    """(numbers of the header by field, its bytes); one with long statistics takes another look."""
    for most in _HEADER_BYTES:
        stream.seek(at)
        raw = stream.read(min(most, end - at))
        try:
            return _struct(raw, 0)
        except IndexError:
            pass
    raise OSError(f"the page header at byte {at} cannot be read")


def _struct(raw: bytes, at: int) -> tuple[dict[int, int], int]:
    """(integers by field, place after the struct). Raises IndexError where the bytes end before it does."""
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
    """The place after a value of one of the kinds that a page header has."""
    if kind in (1, 2):  # true and false are kinds of their own
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
