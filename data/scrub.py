"""Hooks: the user's own functions named in a recipe as "module:function"; and one that is at hand."""

import importlib
import re
from collections.abc import Callable

from data.prepare.recipe import option

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_ADDRESS = re.compile(rf"(?<![\d.])(?:{_OCTET}\.){{3}}{_OCTET}(?![\d.])")


def hook(key: str, name: str) -> Callable[[str], str]:
    """The function that `name` ("module:function") says. Raises ValueError naming the option."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f'{option(key)} {name!r} does not name a function: write it as "module:function"')
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{option(key)} {name!r} cannot be imported: {error}") from None
    if not callable(found):
        raise ValueError(f"{option(key)} {name!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def contacts(text: str) -> str:
    """Replaces e-mail and IPv4 addresses, as RefinedWeb's and FineWeb's releases did, by `<email>` and
    `<ip>`.
    """
    return _ADDRESS.sub("<ip>", _EMAIL.sub("<email>", text))
