"""How bytes become text, for every kind of file: as UTF-8, by the byte order mark, or by the named encoding.

A file in another encoding than UTF-8 is converted to a stream of UTF-8 while it is read. A document that is
not in the file's encoding is repaired or left out by itself, and counted.
"""

import codecs
import io
from typing import IO, Any

from data.opening import naming, open_bytes
from data.prepare.recipe import Recipe
from data.prepare.sources.looks import BOM, HEAD, binary_format, looks_like_utf16
from data.prepare.tally import Tally

_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_CHUNK = 1 << 16
_ESCAPE = "germinal.undecodable"


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler of codecs: put what cannot be decoded as a byte that neither UTF-8 nor Windows-1252 has,
    so that the document with it is found later.
    """
    assert isinstance(error, UnicodeDecodeError | UnicodeEncodeError)
    return ("\udc81" if isinstance(error, UnicodeDecodeError) else b"\x81"), error.end


codecs.register_error(_ESCAPE, _escape)


def encoding_of(head: bytes, recipe: Recipe) -> str:
    """The encoding of a file that begins with `head`; "" for UTF-8 and for what is no text.

    A byte order mark overrules the encoding that the recipe names.
    """
    if head.startswith(BOM):
        return ""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    return "" if binary_format(head) else recipe.named_encoding


def is_transcoded(path: str, recipe: Recipe) -> bool:
    """Is the file in another encoding than UTF-8, so that no part of it can be read by itself?

    Raises RuntimeError where the file cannot be read.
    """
    with naming(path), open_bytes(path) as stream:
        return bool(encoding_of(stream.read(HEAD), recipe))


def open_text(path: str, recipe: Recipe) -> tuple[IO[bytes], bytes]:
    """Open a file of text; return a stream of UTF-8 and the stream's first bytes."""
    stream = open_bytes(path)
    head = stream.read(HEAD)
    try:
        stream.seek(0)
    except (OSError, ValueError):
        # A decompressor, or a server that sends no ranges; `seekable` may claim otherwise.
        stream.close()
        stream = open_bytes(path)
    if encoding := encoding_of(head, recipe):
        transcoded = io.BufferedReader(_Utf8(stream, encoding), _CHUNK)
        return transcoded, transcoded.peek(HEAD)[:HEAD]
    return stream, head


class _Utf8(io.RawIOBase):
    """A stream in another encoding, read as UTF-8; what is not in the encoding goes through `_escape`."""

    def __init__(self, raw: IO[bytes], encoding: str) -> None:
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder(encoding)(_ESCAPE)
        self._ready = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with UTF-8."""
        while not self._ready and not self._ended:
            chunk = self._raw.read(_CHUNK)
            self._ended = not chunk
            text = self._decoder.decode(chunk, self._ended)
            self._ready = memoryview(text.encode("utf-8", _ESCAPE))
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        """Close this stream and the file."""
        self._raw.close()
        super().close()


def decode(raw: bytes, recipe: Recipe, tally: Tally, where: str) -> str | None:
    """The text of a whole file; None, counted under `where`, if it is binary or cannot be decoded."""
    if known := binary_format(raw):
        tally.add("removed.binary", len(raw), f"{where} ({known})")
        return None
    if encoding := encoding_of(raw, recipe):
        try:
            text = raw.decode(encoding)
            text.encode()  # UTF-7 can encode half of a surrogate pair
        except UnicodeError:
            tally.add("removed.undecodable", len(raw), where)
            return None
        if "\0" in text[:HEAD]:
            tally.add("removed.binary", len(raw), where)
            return None
        return text
    if looks_like_utf16(raw):
        tally.add("removed.utf16_without_mark", len(raw), where)
        return None
    return decoded(raw.removeprefix(BOM), recipe, tally, where)


def decoded(raw: bytes, recipe: Recipe, tally: Tally, where: str) -> str | None:
    """The text of a row or a part of a file; None, counted under `where`, if it cannot be decoded."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        pass
    step, encoding = _remedy(raw, recipe)
    tally.add(step, len(raw), where)
    return raw.decode(encoding, "replace") if encoding else None


def decoded_row(values: list[str], recipe: Recipe, tally: Tally, where: str) -> list[str] | None:
    """The values of a row that was read as UTF-8 with `surrogateescape`, decoded in one way for the whole
    row; None, counted under `where`, if they cannot be.
    """
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        raws = [value.encode("utf-8", "surrogateescape") for value in values]
        step, encoding = _remedy(b" ".join(raws), recipe)
        tally.add(step, sum(map(len, raws)), where)
        return [raw.decode(encoding, "replace") for raw in raws] if encoding else None
    return values


def _remedy(raw: bytes, recipe: Recipe) -> tuple[str, str]:
    """(step to count, encoding to decode with) for bytes that are not UTF-8; encoding "" to leave them out.

    Broken UTF-8 is text with more valid letters of several bytes than invalid bytes: Windows-1252 would spoil
    all these letters, and text in another encoding has hardly any of them by chance.
    """
    if b"\0" in raw[:HEAD]:
        return "removed.binary", ""
    if recipe.undecodable == "skip" or recipe.named_encoding:
        return "removed.undecodable", ""
    others = [letter for letter in raw.decode("utf-8", "surrogateescape") if not letter.isascii()]
    wrong = sum("\udc80" <= letter <= "\udcff" for letter in others)
    if len(others) > 2 * wrong:
        return "changed.broken_utf8", "utf-8"
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return "removed.undecodable", ""
    return "changed.not_utf8", "cp1252"
