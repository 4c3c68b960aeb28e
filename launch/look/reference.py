"""`germinal config`: every key of a run's config, from the fields that declare them.

`--markdown` writes docs/config.md.
"""

import argparse
import inspect
import re
import typing
from typing import Any

from launch import options, tables
from trainer.config import keys, schema
from trainer.config.keys import Key
from trainer.config.run_config import RunConfig

BASE = Key(
    "base",
    str,
    "",
    "a config that is read first, by its path from this one: all but its name and run_dir; it may have a "
    "base itself",
    (),
)
COLUMNS = ("key", "what it may be", "default", "unit", "meaning")
OF_KINDS = ("key", "of kind", *COLUMNS[1:])
HEAD = """# Config keys

Written by `germinal config --markdown > docs/config.md`; not by hand. `germinal config KEY` shows a section
or one key.

A config is a YAML file, and each `key=value` after it on the command line changes one key: `optim.lr=3e-4`,
`data.sources[0].weight=2`. A text is kept as it is typed, `1.10` and `007` too; a number is decimal, with no
leading 0. `${key}` stands for the value that another key is given, in quotes inside `{…}` and `[…]`, and
`\\${` for those two characters.

The keys of `model` and `objective` are those of its `kind`: the column "of kind" says which kinds have a key
so; one that kinds declare differently, such as with another default, has a line for each way.

A value that a key cannot have, and keys that cannot go together, are one line and exit code 2 before any rank
starts.
"""


def add_command(add: options.AddCommand) -> None:
    parser = add("config", "every key of a config: type, choices, default, unit, meaning")
    parser.add_argument(
        "key", metavar="KEY", nargs="?", help="a section (optim) or a key (optim.lr); none: all"
    )
    parser.add_argument("--markdown", action="store_true", help="as docs/config.md")
    options.add_json(parser)
    parser.set_defaults(run=config)


def config(args: argparse.Namespace) -> int:
    """Print all keys, those of a section, or one; as tables, as Markdown or as JSON."""
    found = selected(args.key)
    if args.json:
        tables.document([described(key) for key in found])
    elif args.markdown:
        print(markdown(found), end="")
    else:
        for section, members in by_section(found):
            told = about(section) if section else {}
            if len(told) > 1 and len({key.name for key in members}) > 1:
                for name, text in told.items():
                    print(f"{section}.kind={name}: {text}")
            title = f"{section}: {told['']}" if "" in told else section or "the run"
            columns, lines = table(section, members)
            tables.rows(title, columns, lines)
    return 0


def selected(name: str | None) -> list[Key]:
    """Return the keys of a section, the key of this name, or all keys; ValueError with the nearest name."""
    everything = [BASE, *keys.declarations(RunConfig)]
    if not name:
        return everything
    name = re.sub(r"\[\d*\]", "[]", name)
    found = [key for key in everything if key.name == name]
    found += [key for key in everything if key.name.startswith((f"{name}.", f"{name}[]."))]
    if not found:
        known = [BASE.name, *(key.replace("[0]", "[]") for key in schema.dotted_keys(RunConfig))]
        raise ValueError(
            f"{name}: no such key; {schema.nearest(name, known, known) or 'see `germinal config`'}"
        )
    return found


def by_section(found: list[Key]) -> list[tuple[str, list[Key]]]:
    """Return (dotted section, its keys) in the order of declaration; "" is the top level."""
    sections: dict[str, list[Key]] = {}
    for key in found:
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    return list(sections.items())


def about(section: str) -> dict[str, str]:
    """Return the first paragraph of a section's docstring; of each of its kinds by name, where it has
    several. "" is the name of one without kinds.
    """
    found: dict[str, Any] = {"": RunConfig}
    for part in section.split("."):
        found = {kind: inner for outer in found.values() for kind, inner in _sections(outer, part).items()}
    return {
        kind: " ".join((inspect.getdoc(inner) or "").split("\n\n")[0].split())
        for kind, inner in found.items()
    }


def _sections(at: Any, part: str) -> dict[str, Any]:
    """The dataclasses that a part of a key's name may stand for in the dataclass `at`, one for each kind."""
    for field in at.__dataclass_fields__.values():
        if schema.yaml_key(field) == part.removesuffix("[]"):
            hint = typing.get_type_hints(at)[field.name]
            hint = typing.get_args(hint)[0] if part.endswith("[]") else hint
            return dict(field.metadata.get("kinds", {"": hint}))
    return {}


def table(section: str, members: list[Key]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the columns and the lines of a section's keys: with their kinds, where it has several."""
    if len(names := list(about(section) if section else ())) < 2:
        return COLUMNS, [row(key) for key in members]
    lines = []
    for key in members:
        kinds = "all" if len(key.kinds) in (0, len(names)) else ", ".join(key.kinds)
        lines.append((key.name, kinds, *row(key)[1:]))
    return OF_KINDS, lines


def kind(key: Key) -> str:
    """Say what a value of the key may be: its type with its bounds, or the choices."""
    several = typing.get_origin(key.hint) is list
    if key.choices or key.forms:
        one = " | ".join(map(str, key.choices or key.forms))
        return f"list of {one}" if several else one
    names: dict[Any, str] = {int: "integer", float: "number", bool: "true | false", str: "text"}
    if several:
        length = f"{key.length} " if key.length else ""
        what = f"list of {length}{names.get(typing.get_args(key.hint)[0], 'mapping')}s"
    elif typing.get_origin(key.hint) is dict:
        what = "mapping of numbers"
    else:
        what = names[key.hint]
    bounds = ", ".join(
        f"{'' if bound.besides is None else f'{bound.besides:g} or '}{bound.sign} {bound.limit}"
        for bound in key.bounds
    )
    return f"{what} {bounds}".strip() + (", not empty" if "not empty" in key.facts else "")


def default(key: Key) -> str:
    """Return the default as YAML."""
    if key.name == "name":
        return "the file's"
    if key.must_be_given:
        return "required"
    return keys.text(key.default) if key.default not in ("", None) else "empty"


def meaning(key: Key) -> str:
    """Say what the key means, what it needs and what it may not be combined with."""
    rules = (f"{' or '.join(rule.of)}{': ' if rule.of else ''}{rule.text}" for rule in key.rules)
    return ". ".join([key.meaning, *rules])


def row(key: Key) -> tuple[str, ...]:
    return key.name, kind(key), default(key), key.unit, meaning(key)


def described(key: Key) -> dict[str, Any]:
    """Return one key as JSON, for scripts."""
    return {
        "key": key.name,
        "type": kind(key),
        "choices": list(key.choices or key.forms),
        "required": key.must_be_given,
        "default": None if key.must_be_given else key.default,
        "unit": key.unit,
        "meaning": key.meaning,
        "rules": [f"{' or '.join(rule.of)}{': ' if rule.of else ''}{rule.text}" for rule in key.rules],
        "kinds": list(key.kinds),
    }


def markdown(found: list[Key]) -> str:
    """Return the keys as Markdown, as in docs/config.md."""
    lines = [HEAD]
    for section, members in by_section(found):
        lines += [f"## {section}\n" if section else "## The run\n"]
        told = about(section) if section else {}
        lines += [f"- `{kind}`: {text}" if kind else text for kind, text in told.items()]
        columns, rows = table(section, members)
        lines += [*[""] * bool(told), f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
        for name, *cells in rows:
            escaped = (cell.replace("|", "\\|") for cell in cells)
            lines.append(f"| `{name}` | {' | '.join(escaped)} |")
        lines.append("")
    return "\n".join(lines)
