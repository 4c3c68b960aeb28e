"""Access to parts of other packages that they do not promise to keep; a missing one is named in one line."""

import importlib
from importlib.metadata import version
from typing import Any


def insist(package: str, holder: Any, *names: str) -> None:
    """ValueError, one line with the package and its version, unless `holder` has every one of `names`."""
    for name in names:
        if not hasattr(holder, name):
            raise _missing(package, f"{getattr(holder, '__name__', type(holder).__name__)}.{name}")


def borrow(package: str, module: str, name: str) -> Any:
    """Return `name` of a module that the package may move or drop. ValueError as from `insist`."""
    try:
        holder = importlib.import_module(module)
    except ImportError as error:
        raise _missing(package, module) from error
    insist(package, holder, name)
    return getattr(holder, name)


def replace(package: str, holder: Any, **values: Any) -> None:
    """Give names of `holder`, such as a module's defaults, other values. ValueError as from `insist`."""
    insist(package, holder, *values)
    for name, value in values.items():
        setattr(holder, name, value)


def _missing(package: str, name: str) -> ValueError:
    return ValueError(
        f"{package} {version(package)} has no {name}, which this project builds on: install a version that "
        "its pyproject.toml names"
    )
