"""A model of the user's own, from outside this project: `model.kind: package.module:ConfigClass`.

The module is looked for where Python finds modules, and after that in the working directory, so a file there
hides no installed package. docs/examples/own_model.md shows how. Imports no torch, unless the user's module
does.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import re
import sys
import traceback
import typing
from types import ModuleType
from typing import Any

from trainer.models.config import ModelConfig

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def own_config(kind: str) -> type[ModelConfig] | None:
    """Return the config class that `kind`, "package.module:ConfigClass", names; None where it names none.

    Raises:
        ValueError: one line: the module is not found or fails while it is imported, it has no such class, or
            the class is no dataclass or lacks a part of `trainer.models.config.ModelConfig`.
    """
    if ":" not in kind:
        return None
    if not _FORM.fullmatch(kind):
        raise ValueError(f"model.kind={kind!r}: not of the form package.module:ConfigClass")
    name, _, own = kind.partition(":")
    module = _import(name, kind)
    try:
        found = getattr(module, own)
    except AttributeError:
        near = difflib.get_close_matches(own, dir(module), n=1)
        hint = f"; did you mean {name}:{near[0]}?" if near else ""
        raise ValueError(f"model.kind={kind!r}: {module.__file__} has no {own}{hint}") from None
    if wrong := _wrong(found):
        raise ValueError(
            f"model.kind={kind!r}: {own} {wrong}; trainer/models/config.py says what a config has"
        )
    return found  # type: ignore[no-any-return]


def _import(name: str, kind: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:  # ranks start with -P, which leaves it out
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise failed(kind, "its import fails", error) from None  # a module that the user's imports
        taken = sys.modules.get(name.partition(".")[0])
        if error.name != name.partition(".")[0] and taken is not None:
            place = taken.__file__ or ", ".join(taken.__path__)
            raise ValueError(
                f"model.kind={kind!r}: no module {error.name!r}: the package is {place}"
            ) from None
        raise ValueError(
            f"model.kind={kind!r}: no module {error.name!r}, neither installed nor in the working directory "
            f"{here}: start the command where it lies, or install it"
        ) from None
    except Exception as error:  # whatever the user's file does
        raise failed(kind, "its import fails", error) from None


def failed(kind: str, what: str, error: Exception) -> ValueError:
    """Return the error of a user's module, with the last line of it that ran. what: fails."""
    lines = [one for one in traceback.extract_tb(error.__traceback__) if "importlib" not in one.filename]
    place = f" ({lines[-1].filename}, line {lines[-1].lineno})" if len(lines) > 1 else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    reason = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return ValueError(f"model.kind={kind!r}: {what}: {type(error).__name__}: {reason}{place}")


def _wrong(found: Any) -> str:
    """Return why `found` is not the config of a model; "" where it is one."""
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        return "is not a dataclass"
    try:
        typing.get_type_hints(found)
    except Exception as error:
        return f"has a field whose type cannot be read: {error}"
    fields = {field.name: field for field in dataclasses.fields(found)}
    if "kind" not in fields or not fields["kind"].init:
        return 'has no field `kind`: add `kind: str = ""`'
    needed = (*ModelConfig.__annotations__, *(one for one in vars(ModelConfig) if not one.startswith("_")))
    missing = [name for name in needed if name not in fields and _inherited(found, name)]
    return f"has no {', '.join(missing)}" if missing else ""


def _inherited(found: type, name: str) -> bool:
    """Whether `found` has nothing of its own of that name. A check may be the interface's: it accepts all."""
    given = getattr(found, name, None)
    return given is None or (given is getattr(ModelConfig, name, None) and not name.startswith("check"))
