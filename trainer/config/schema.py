"""A mapping → dataclasses, with errors that name the key, the value and the remedy. Independent of what a run
is.

`yaml_files` reads the mapping. OmegaConf could make dataclasses of it too, but its errors do not name the
nearest right key, and its fields cannot have a name that Python reserves (`async`).

A number or a boolean may come as the text that was typed. A number's text is decimal digits, perhaps with `_`
between them, a fraction and an exponent. YAML 1.1 reads 010 as 8 and 1:30 as 90, which surprises: they are
refused as numbers.
"""

import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Sequence
from functools import cache
from typing import Any

MISSING = "???"  # OmegaConf's mark for a value that must be given
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NUMBER = re.compile(
    r"[-+]?((0|[1-9](_?[0-9])*)(?P<fraction>\.[0-9]*)?|(?P<bare>\.[0-9]+))(?P<exponent>[eE][-+]?[0-9]+)?",
    re.ASCII,
)
INT64 = range(-(1 << 63), 1 << 63)  # what numpy and torch count with


def build(cls: Any, values: Any, at: str = "", *, elsewhere: Sequence[str] = ()) -> Any:
    """An instance of the dataclass `cls` from a plain mapping; `at` is its dotted key, for messages.

    A field's YAML key is its name, or what its metadata calls `key` where Python reserves the name. Where the
    metadata has `kinds` (name → dataclass), the value's own key `kind` chooses the class; without it, the
    first. Its `own_kind`, if there is one, finds the class of a kind that `kinds` lacks, or returns None.
    `elsewhere`: keys from elsewhere in the config that an unknown key may be a misspelling of.

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
            raise ValueError(
                unknown_key(_join(at, key), value, [_join(at, name) for name in fields], elsewhere)
            )
        if own := _own_kind(fields[key], value):
            arguments[fields[key].name] = _build_own(own, value, _join(at, key))
            continue
        hint = _by_kind(fields[key], hints[fields[key].name], value, _join(at, key))
        _refuse_keys_of_other_kinds(fields[key], hint, value, _join(at, key))
        arguments[fields[key].name] = _convert(hint, value, _join(at, key))
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if (required or field.default == MISSING) and field.name not in arguments:
            raise ValueError(f"{_join(at, key)}: missing; give {_type_in_words(hints[field.name])}")
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
        kinds = field.metadata.get("kinds")
        if kinds or dataclasses.is_dataclass(hint):
            for kind in (kinds or {"": hint}).values():
                keys += dotted_keys(kind, key)
        elif typing.get_origin(hint) is list and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            keys += dotted_keys(typing.get_args(hint)[0], f"{key}[0]")
    return keys


def yaml_key(field: "dataclasses.Field[Any]") -> str:
    """Return the name of the field in YAML and on the command line."""
    return field.metadata.get("key", field.name)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _by_kind(field: "dataclasses.Field[Any]", hint: Any, value: Any, at: str) -> Any:
    kinds = field.metadata.get("kinds")
    if not kinds:
        return hint
    if not isinstance(value, dict) or "kind" not in value:
        return next(iter(kinds.values()))
    besides = ", or a class of your own as package.module:ConfigClass" if "own_kind" in field.metadata else ""
    return kinds[_one_of(list(kinds), value["kind"], f"{at}.kind", besides)]


def _refuse_keys_of_other_kinds(field: "dataclasses.Field[Any]", hint: Any, value: Any, at: str) -> None:
    """Raise ValueError for a key that the value's kind does not have and another kind has."""
    kinds = {
        kind: {yaml_key(one) for one in dataclasses.fields(cls)}
        for kind, cls in field.metadata.get("kinds", {}).items()
    }
    if not kinds or not isinstance(value, dict):
        return
    here = value.get("kind", next(iter(kinds)))
    for key in value:
        having = [kind for kind, keys in kinds.items() if key in keys]
        if having and here not in having:
            raise ValueError(
                f"{at}.{key}={_shown(value[key])}: {at}.kind={here} has no such key, {' and '.join(having)} "
                f"{'has' if len(having) == 1 else 'have'} it"
            )


def _own_kind(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """Return the class of a kind that is not among the field's `kinds`; None where it is, or is none."""
    find = field.metadata.get("own_kind")
    kind = value.get("kind") if isinstance(value, dict) else None
    if find is None or not isinstance(kind, str) or kind in field.metadata["kinds"]:
        return None
    return find(kind)


def _build_own(cls: Any, values: dict[str, Any], at: str) -> Any:
    """Build `cls` with the kind as it was given, whatever the class says that its `kind` may be."""
    built = build(cls, {key: value for key, value in values.items() if key != "kind"}, at)
    return dataclasses.replace(built, kind=values["kind"])


def _one_of(choices: Sequence[Any], value: Any, at: str, besides: str = "") -> Any:
    number = _number(value)
    for choice in choices:
        if choice == (value if isinstance(choice, str) else number):
            return choice  # and not the value: 3.0 stands for 3
    near = difflib.get_close_matches(str(value), map(str, choices), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{at}={_shown(value)}: not one of {', '.join(map(str, choices))}{besides}{hint}")


def _convert(hint: Any, value: Any, at: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, str) and value == MISSING:
        raise ValueError(f"{at}: missing (???); give {_type_in_words(hint)}")
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
    if hint in (bool, int, float, str):
        return _scalar(hint, value, at)
    raise ValueError(f"{at}{_wrong(hint, value)}")


def _scalar(hint: Any, value: Any, at: str) -> bool | int | float | str:
    if hint is str and isinstance(value, str):
        return value
    truth = TRUTHS.get(value.lower()) if isinstance(value, str) else value
    if hint is bool and isinstance(truth, bool):
        return truth
    number = _number(value)
    if hint is int and number is not None and number == number // 1:
        if int(number) not in INT64:
            raise ValueError(f"{at}={_shown(value)}: an integer that does not fit in 64 bits")
        return int(number)  # 1e6 is a float to Python and a step count to its writer
    if hint is float and number is not None and abs(number) <= sys.float_info.max:
        return float(number)
    raise ValueError(f"{at}{_wrong(hint, value)}")


def _number(value: Any) -> int | float | None:
    """The number that a value is, or is the text of; None where it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not (match := NUMBER.fullmatch(value)):
        return None
    number = float(value)
    whole = not any(match.group("fraction", "bare", "exponent"))
    return int(value) if whole and abs(number) < 2.0**64 else number  # exact beyond 2^53


def _wrong(hint: Any, value: Any) -> str:
    if value is None:
        return f": has no value; give {_type_in_words(hint)}, or leave the key out"
    if hint is str and not isinstance(value, dict | list):
        return f"={_shown(value)}: not a text: quote it"
    if isinstance(value, str) and re.fullmatch(r"[-+]?0[0-9_]+", value):
        return f"={value}: not {_type_in_words(hint)}: a leading 0 means octal in YAML 1.1: write it without"
    return f"={_shown(value)}: not {_type_in_words(hint)}"


def _type_in_words(hint: Any) -> str:
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}
    kinds = {list: "a list", dict: "a mapping"}
    return names.get(hint) or kinds.get(typing.get_origin(hint), "a mapping")  # type: ignore[arg-type]


def _shown(value: Any) -> str:
    if isinstance(value, str) and (value.lower() in TRUTHS or _number(value) is not None):
        return value  # as it was typed
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else str(key)
