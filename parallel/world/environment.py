"""Environment variables for libraries that take their settings in no other way."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def environment(values: Mapping[str, str], *, programs: Path | None = None) -> Iterator[None]:
    """Set variables, and put the folder `programs` first on the PATH; restore all of them afterwards."""
    values = dict(values)
    if programs is not None:
        values["PATH"] = os.pathsep.join((str(programs), os.environ.get("PATH", os.defpath)))
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
