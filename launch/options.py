"""Arguments that several commands share, their types, and a dataclass's fields as options."""

import argparse
import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

from trainer.config.schema import INT64

AddCommand = Callable[[str, str], argparse.ArgumentParser]
"""(name, what the command is for) → a new parser for the arguments of that command."""

CONFIG = (
    "YAML file, or a run folder to go on with; relative paths in it start at the working directory, that of "
    "base: at the file's own folder"
)


def command_adder(parser: argparse.ArgumentParser) -> AddCommand:
    """Return a function that adds commands to `parser`."""
    group = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        sub = group.add_parser(name, help=about, description=about)
        sub.set_defaults(parser=sub)
        return sub

    return add


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that a `launch.job.Job` is made of: CONFIG, key=value and --nproc."""
    add_config(parser)
    parser.add_argument(
        "--nproc", type=count, default=1, metavar="N", help="ranks on this machine (default 1)"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG and key=value."""
    parser.add_argument("config", metavar="CONFIG", help=CONFIG)
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes one key of it")
    # Positionals after an option are appended to the argument named here: see `cli.parse`.
    parser.set_defaults(rest="overrides")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument RUN."""
    parser.add_argument("folder", metavar="RUN", help="run folder, or the config in it")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the flag --json."""
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )


def add_fields(parser: argparse.ArgumentParser, cls: Any, title: str, about: Mapping[str, str]) -> None:
    """Add an option for each field of the dataclass `cls`.

    A field `text_field` becomes `--text-field TEXT`, a bool becomes a flag, and the option of a list may be
    repeated.

    Args:
        parser: the parser of one command.
        cls: the dataclass; `from_fields` makes one from the parsed options.
        title: the heading above the options in the help.
        about: field name → what the field is, in a few words.
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


def from_fields(args: argparse.Namespace, cls: Any) -> Any:
    """Return the dataclass that the options of `add_fields` describe."""
    return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})


def integer(text: str) -> int:
    """Type of an option: an integer that fits in 64 bits, as numpy and torch need it."""
    value = int(text)
    if value not in INT64:
        raise argparse.ArgumentTypeError(f"{text} is an integer that does not fit in 64 bits")
    return value


def count(text: str) -> int:
    """Type of an option: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return integer(text)
