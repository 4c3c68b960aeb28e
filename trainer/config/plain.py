"""A config as plain mappings, lists and values: for YAML, JSON, comparisons."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from trainer.config.schema import yaml_key


def plain(value: Any) -> Any:
    """A dataclass tree as mappings and lists under its YAML keys: what `build` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {yaml_key(f): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def defaults(cls: Any) -> dict[str, Any]:
    """The defaults of a config dataclass under its YAML keys; keys that must be given are left out."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[yaml_key(field)] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[yaml_key(field)] = plain(field.default_factory())
    return found


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each leaf; a list is one where nothing in it has keys."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{at}.{key}" if at else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, f"{at}[{number}]")
    else:
        yield at, value
