"""Hooks: functions of the user's own that a recipe names as "module:function"."""

import importlib
from collections.abc import Callable

from data.prepare.recipe import option


def load_hook(key: str, name: str) -> Callable[[str], str]:
    """The function that `name` ("module:function") names; `key` is the recipe's field that holds `name`.

    Raises ValueError, naming the option, where there is no such function.
    """
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
