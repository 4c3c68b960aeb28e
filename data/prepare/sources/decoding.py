"""How bytes become text: by UTF-8, by the mark that a file begins with, or by the encoding that is named.

Every kind of file agrees. A file in another encoding than UTF-8 is read as a stream of UTF-8 that is made on
the way. What is not in a file's encoding is judged document by document, and counted.
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
    """What cannot be decoded goes on as a byte that neither UTF-8 nor Windows-1252 has, so that the document
    with it is found.
    """
    assert isinstance(error, UnicodeDecodeError | UnicodeEncodeError)
    return ("\udc81" if isinstance(error, UnicodeDecodeError) else b"\x81"), error.end


codecs.register_error(_ESCAPE, _escape)


def encoding_of(head: bytes, recipe: Recipe) -> str:
    """The encoding of a file that begins with `head`; "" for UTF-8 and for what is no text. A mark goes
    before the encoding that the recipe names.
    """
    if head.startswith(BOM):
        return ""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    return "" if binary_format(head) else recipe.named_encoding


def is_transcoded(path: str, recipe: Recipe) -> bool:
    """Is the file in another encoding than UTF-8, so that no part of it can be read by itself? Raises
    RuntimeError where it cannot be read.
    """
    with naming(path), open_bytes(path) as stream:
        return bool(encoding_of(stream.read(HEAD), recipe))


def open_text(path: str, recipe: Recipe) -> tuple[IO[bytes], bytes]:
    """Opens a file of text as a stream of UTF-8, with the stream's first bytes, for a look at them."""
    stream = open_bytes(path)
    head = stream.read(HEAD)
    try:
        stream.seek(0)
    except (OSError, ValueError):
        # A decompressor, or a server that sends no ranges, whatever `seekable` says.
        stream.close()
        stream = open_bytes(path)
    if encoding := encoding_of(head, recipe):
        transcoded = io.BufferedReader(_Utf8(stream, encoding), _CHUNK)
        return transcoded, transcoded.peek(HEAD)[:HEAD]
    return stream, head


class _Utf8(io.RawIOBase):
    """A stream in another encoding as UTF-8; `_escape` says what becomes of bytes that it does not have."""

    def __init__(self, raw: IO[bytes], encoding: str) -> None:
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder(encoding)(_ESCAPE)
        self._ready = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with UTF-8."""
        while not self._ready and not self._ended:
            chunk = self._raw.read(_CHUNK)
            self._ended = not chunk
            text = self._decoder.decode(chunk, self._ended)
            self._ready = memoryview(text.encode("utf-8", _ESCAPE))
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        """Closes the file as well."""
        self._raw.close()
        super().close()


def decode(raw: bytes, recipe: Recipe, tally: Tally, where: str) -> str | None:
    """The text of a whole file; None, counted, for what is binary or cannot be decoded."""
    if known := binary_format(raw):
        tally.add("removed.binary", len(raw), f"{where} ({known})")
        return None
    if encoding := encoding_of(raw, recipe):
        try:
            text = raw.decode(encoding)
            text.encode()  # UTF-7 can name half of a surrogate pair
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
    """The text of a row or a part of a file; None, counted, where it cannot be decoded."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        pass
    step, encoding = _remedy(raw, recipe)
    tally.add(step, len(raw), where)
    return raw.decode(encoding, "replace") if encoding else None


def decoded_row(values: list[str], recipe: Recipe, tally: Tally, where: str) -> list[str] | None:
    """The values of a row that were read as UTF-8 with `surrogateescape`; the row is judged as a whole."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        raws = [value.encode("utf-8", "surrogateescape") for value in values]
        step, encoding = _remedy(b" ".join(raws), recipe)
        tally.add(step, sum(map(len, raws)), where)
        return [raw.decode(encoding, "replace") for raw in raws] if encoding else None
    return values


def _remedy(raw: bytes, recipe: Recipe) -> tuple[str, str]:
    """(step to count, encoding to read it by) of what is not UTF-8; no encoding where it is to be left out.

    Text with more letters of several bytes that are UTF-8 than bytes that are not is broken UTF-8, in which
    Windows-1252 would spoil every letter; other text has next to none by chance.
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
