"""Requests to a remote store, tried again where they fail or where the wrong bytes arrive.

fetch(what, action)            tries `action` again where it fails
fetch_existing(what, action)   the same; a missing file is damage of the corpus
fetch_right(action)            tries `action` again where it raises WrongBytes

A server, a proxy or a line may fail for a while or change bytes at any time. Only what arrives wrong several
times is called damaged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from common.retry import attempts
from data.opening import store_options

ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.25  # doubled each time: half a minute in all
ARRIVALS = 3  # how often bytes are fetched before they are called damaged
_REFUSED = (401, 403)  # HTTP: without, or with the wrong, credentials

T = TypeVar("T")


class WrongBytes(RuntimeError):
    """Other bytes arrived than the manifest says; the next arrival may be right."""


def is_remote(path: str) -> bool:
    """Whether a corpus path is a URL."""
    return "://" in path


def open_filesystem(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of a URL. Raises ValueError where none serves the URL."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url, **store_options(url))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be opened: {error}; pip install 'germinal[http]' or [s3]") from None


def fetch(what: str, action: Callable[[], T]) -> T:
    """Return the result of `action`, tried ATTEMPTS times; `what` names the file in errors.

    Raises FileNotFoundError where the file is missing and RuntimeError where access is refused, both at once;
    RuntimeError after the last attempt.
    """
    for attempt in attempts(ATTEMPTS, FIRST_PAUSE_SECONDS):
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception as error:  # each store has its own exceptions for a connection that broke
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if getattr(error, "status", 0) in _REFUSED or isinstance(error, PermissionError):
                raise RuntimeError(f"{what} may not be read: {reason}: check the URL and your key") from None
            if attempt == 1:
                print(f"{what}: tried twice, and again: {reason}", file=sys.stderr, flush=True)
    raise RuntimeError(f"{what} could not be read in {ATTEMPTS} attempts: {reason}")


def fetch_existing(what: str, action: Callable[[], T]) -> T:
    """As `fetch`, for a file that the corpus must have: RuntimeError where it is missing."""
    try:
        return fetch(what, action)
    except FileNotFoundError:
        raise RuntimeError(f"{what} is missing; restore it or run `germinal prepare` again") from None


def fetch_right(action: Callable[[], T]) -> T:
    """Return the result of `action`, called up to ARRIVALS times where it raises WrongBytes."""
    for _ in arrivals():
        try:
            return action()
        except WrongBytes as error:
            last = error
    raise last


def arrivals(times: int = ARRIVALS) -> Iterator[int]:
    """Yield 0, 1, …, times − 1, with the pauses of requests between them."""
    return attempts(times, FIRST_PAUSE_SECONDS)
