"""A dataclass of settings → command-line options, one a field: what can be asked for is written once."""

import argparse
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from trainer.config.schema import INT64


def add_fields(parser: argparse.ArgumentParser, cls: Any, title: str, about: Mapping[str, str]) -> None:
    """`--text-field TEXT` for a field `text_field`; a flag for a bool; may be repeated for a list.

    `about`: what each field is, in a few words.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        option, hint = "--" + field.name.replace("_", "-"), hints[field.name]
        what = about[field.name]
        if hint is bool:
            group.add_argument(option, action="store_true", help=what)
        elif typing.get_origin(hint) is list:
            group.add_argument(
                option, action="append", default=[], metavar="TEXT", help=f"{what}; may be repeated"
            )
        else:
            metavar = {int: "N", float: "X"}.get(hint, "TEXT")
            kind = integer if hint is int else hint
            note = what + (f" (default {field.default})" if field.default not in ("", 0) else "")
            group.add_argument(option, type=kind, default=field.default, metavar=metavar, help=note)


def integer(text: str) -> int:
    """The type of an option that is an integer: one that numpy and torch can count with."""
    value = int(text)
    if value not in INT64:
        raise argparse.ArgumentTypeError(f"{text} is an integer that 64 bits do not hold")
    return value


def from_fields(args: argparse.Namespace, cls: Any) -> Any:
    """The dataclass that the options of `add_fields` amount to."""
    return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})
