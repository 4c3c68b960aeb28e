"""Files of lines that users write: each line a text, or JSON. An error names the file and the line."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from common.files import read_lines

T = TypeVar("T")
_SHOWN = 100  # characters of a value in a message


def read_each(path: str | Path, read: Callable[[str], Iterable[T]]) -> list[T]:
    """Return what `read` gives for each line of a text file, one after the other.

    ValueError, one line with the file and the line's number, where `read` raises one, or where the file
    cannot be read as UTF-8.
    """
    found: list[T] = []
    for number, line in enumerate(read_lines(Path(path)), 1):
        try:
            found += read(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return found


def read_json_lines(path: str | Path, read: Callable[[Any], Iterable[T]]) -> list[T]:
    """Return what `read` gives for the JSON value of each line that is not blank; raises as `read_each`."""
    return read_each(path, lambda line: read(parsed(line)) if line.strip() else ())


def parsed(text: str) -> Any:
    """Return the value of a JSON text in one line. ValueError where it is none, or holds half of a surrogate
    pair, which is no character: no tokenizer takes it, and no terminal prints it.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: {error.msg.removesuffix(' at')}") from None
    except RecursionError:
        raise ValueError("nested too deeply to be read") from None
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = json.dumps(str(error.object)[error.start])
            raise ValueError(f"{half} is half of a surrogate pair: no character without the other") from None
    return value


def shown(value: Any) -> str:
    """Return a JSON value as a message has it: one line, a long one cut."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
