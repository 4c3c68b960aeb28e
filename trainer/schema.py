"""YAML and `key=value` → dataclasses, with errors that name the key, the value and the remedy. Knows no run.

OmegaConf reads, merges and interpolates. The last step, into dataclasses, is done here: OmegaConf's errors
know no nearest right key, and none of its fields can bear a name that Python reserves (`async`).
"""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

MISSING = "???"  # OmegaConf's mark for a value that must be given
INT64 = range(-(1 << 63), 1 << 63)  # what numpy and torch count with


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping that the file `path`, its `base:` if it has one, and then each `key=value` amount to.

    `base:` is a path from the file's own folder; a base may have a base itself.
    Lists are replaced, not joined; `data.sources[0].path=…` changes one element. `${key}` stands for another
    key's value, `${oc.env:NAME}` for an environment variable of the process that reads: a text.

    Raises:
        ValueError: a file that is missing or no YAML mapping, an override that is not `key=value`.
    """
    try:
        return _read(path, overrides)
    except RecursionError:  # PyYAML and OmegaConf go down one call, or several, a level
        raise ValueError(f"config {path}: nested too deeply: no key is more than a few levels down") from None


def _read(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(path)
    merged = _with_bases(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"{override!r}: not a key=value")
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]
            OmegaConf.update(merged, key, value, merge=True, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{override}: cannot be set: {_first_line(error)}") from None
        except Exception as error:  # PyYAML's errors share no base with OmegaConf's
            raise ValueError(f"{override}: the value is not YAML: {_first_line(error)}") from None
    try:
        container = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ValueError(f"{path}: {key}: {_first_line(error)}") from None
    return typing.cast(dict[str, Any], container)


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> Any:
    """The file over its base, over that one's …; `above`: the files that led here."""
    from omegaconf import OmegaConf

    content = _read_file(path)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ValueError(f"{path}: base={base!r}: not the path of a config; at most one base is allowed")
    chain, lower = (*above, path), path.parent / base
    if lower.resolve() in [file.resolve() for file in chain]:
        way = " → ".join(str(file) for file in (*chain, lower))
        raise ValueError(f"{path}: base={base}: bases that lead back to themselves: {way}")
    return OmegaConf.merge(_with_bases(lower, chain), content)


def _read_file(path: Path) -> Any:
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"config {path}: no such file{hint}")
    try:
        content = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"config {path}, line {line}: not YAML: {error.problem}") from None
    except OmegaConfBaseException as error:  # a null key, a !!set
        raise ValueError(f"config {path}: {_first_line(error)}") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ValueError(f"config {path}: not YAML: {_first_line(error)}") from None
    if not isinstance(content, DictConfig):
        raise ValueError(f"config {path}: not a mapping of keys to values")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def build(cls: Any, values: Any, at: str = "", *, known: Sequence[str] = ()) -> Any:
    """An instance of the dataclass `cls` from a plain mapping; `at` is its dotted key, for messages.

    A field's YAML key is its name, or what its metadata calls `key` where Python reserves the name. Where the
    metadata has `kinds` (name → dataclass), the value's own key `kind` chooses the class. `known`: keys from
    elsewhere in the config that an unknown key may be a misspelling of.

    Raises:
        ValueError: an unknown key, a wrong type, a missing value; and whatever the class itself refuses.
    """
    fields = {yaml_key(field): field for field in dataclasses.fields(cls)}
    if not isinstance(values, dict):
        raise ValueError(f"{at}={_shown(values)}: not a mapping with the keys {', '.join(fields)}")
    hints = _hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(unknown_key(_join(at, key), value, [_join(at, name) for name in fields], known))
        if value != MISSING:
            hint = _by_kind(fields[key], hints[fields[key].name], value, _join(at, key))
            arguments[fields[key].name] = _convert(hint, value, _join(at, key))
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if (required or field.default == MISSING) and field.name not in arguments:
            raise ValueError(f"{_join(at, key)}: missing; give {_article(hints[field.name])}")
    return cls(**arguments)


def unknown_key(key: str, value: Any, siblings: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    """The message for a key that no dataclass has: the nearest of its siblings, else of the whole config."""
    while isinstance(value, dict) and len(value) == 1:  # `optimizer.lr=…` is meant, not `optimizer`
        (last, value), *_ = value.items()
        key = _join(key, last)
    names = ", ".join(name.rpartition(".")[2] for name in siblings)
    return (
        f"{key}={_shown(value)}: unknown key; {nearest(key, siblings, elsewhere) or f'known here: {names}'}"
    )


def nearest(key: str, siblings: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    """`did you mean …?` with the nearest of the siblings, else of `elsewhere`; "" where none is near."""
    last = key.rpartition(".")[2]
    namesakes = [other for other in elsewhere if other.rpartition(".")[2] == last]
    initials = "".join(word[0] for word in last.split("_") if word)  # learning_rate for lr
    near = (
        difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
        or [other for other in siblings if other.rpartition(".")[2] == initials]
        or namesakes[:1]
        or difflib.get_close_matches(key, [*siblings, *elsewhere], n=1, cutoff=0.6)
    )
    return f"did you mean {near[0]}?" if near else ""


def dotted_keys(cls: Any, at: str = "") -> list[str]:
    """Every key of a dataclass tree, dotted; an element of a list is written `[0]`."""
    keys = []
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        hint, key = hints[field.name], _join(at, yaml_key(field))
        keys.append(key)
        if dataclasses.is_dataclass(hint):
            for kind in field.metadata.get("kinds", {"": hint}).values():
                keys += dotted_keys(kind, key)
        elif typing.get_origin(hint) is list and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            keys += dotted_keys(typing.get_args(hint)[0], f"{key}[0]")
    return keys


def plain(value: Any) -> Any:
    """A dataclass tree as mappings and lists under its YAML keys: what `build` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {yaml_key(f): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def yaml_key(field: "dataclasses.Field[Any]") -> str:
    """What the field is called in YAML and on the command line."""
    return field.metadata.get("key", field.name)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _by_kind(field: "dataclasses.Field[Any]", hint: Any, value: Any, at: str) -> Any:
    kinds = field.metadata.get("kinds")
    if not kinds or not isinstance(value, dict) or "kind" not in value:
        return hint
    return kinds[_one_of(list(kinds), value["kind"], f"{at}.kind")]


def _one_of(choices: Sequence[Any], value: Any, at: str) -> Any:
    for choice in choices:
        if choice == value and isinstance(value, bool) == isinstance(choice, bool):
            return choice  # and not the value: 3.0 stands for 3
    near = difflib.get_close_matches(str(value), map(str, choices), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{at}={_shown(value)}: not one of {', '.join(map(str, choices))}{hint}")


def _convert(hint: Any, value: Any, at: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, at)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, at)
    if origin is typing.Literal:
        return _one_of(args, value, at)
    if origin is list and isinstance(value, list):
        return [_convert(args[0], item, f"{at}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(args[1], item, _join(at, str(key))) for key, item in value.items()}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and number and value == value // 1:
        if int(value) not in INT64:
            raise ValueError(f"{at}={_shown(value)}: an integer that 64 bits do not hold")
        return int(value)  # 1e6 is a float to YAML and a step count to its writer
    if hint is float and number and abs(value) <= sys.float_info.max:
        return float(value)
    if hint is str and (isinstance(value, str) or number):
        return str(value)
    if value is None:
        raise ValueError(f"{at}: has no value; give {_article(hint)}, or leave the key out")
    raise ValueError(f"{at}={_shown(value)}: not {_article(hint)}")


def _article(hint: Any) -> str:
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}
    kinds = {list: "a list", dict: "a mapping"}
    return names.get(hint) or kinds.get(typing.get_origin(hint), "a mapping")  # type: ignore[arg-type]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else str(key)
