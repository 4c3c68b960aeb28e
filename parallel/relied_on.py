"""What the engines use of other packages that is not promised: looked for before anything is built on it."""

from importlib.metadata import version
from typing import Any


def insist(package: str, holder: Any, *names: str) -> None:
    """ValueError, one line with the package and its version, unless `holder` has every one of `names`."""
    for name in names:
        if not hasattr(holder, name):
            where = getattr(holder, "__name__", type(holder).__name__)
            raise ValueError(
                f"{package} {version(package)} has no {where}.{name}, which this project builds on: install "
                "a version that its pyproject.toml names"
            )
