"""Config files and `key=value` → one mapping, and back. Independent of which keys there are.

A value without quotes stays the text that was typed, numbers and `yes` and `no` too: `schema.build` converts
it by the key's type, so that `name=1.10` and a tag of `007` are kept. Only null is not a text. OmegaConf
merges and interpolates.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")

# libyaml's where PyYAML was built with it: the other takes seconds for some nested texts.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    """PyYAML's loader, which keeps plain scalars as typed and refuses a key that is given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag == self.DEFAULT_SCALAR_TAG and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return cast(dict[Any, Any], super().construct_mapping(node, deep=deep))


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in resolvers if tag in KEPT])
}


class _Dumper(yaml.SafeDumper):
    """PyYAML's, with double quotes around a text that has line breaks of Unicode: inside single quotes they
    are folded to spaces when they are read.
    """


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    folded = any(mark in text for mark in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if folded else None)


_Dumper.add_representer(str, _represent_text)


def read(
    path: str | Path, overrides: Sequence[str] = (), own: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the mapping of the file `path` over its `base:`, if it has one, with each `key=value` set in it.

    `base:` is a path from the file's own folder; a base may have a base itself. `own`: keys that are not
    taken from a base, with their values where the file has none. Lists are replaced, not joined;
    `data.sources[0].path=…` changes one element. `${key}` stands for another key's value, `${oc.env:NAME}`
    for an environment variable of the process that reads; `\\${` for the two characters.

    Raises:
        ValueError: a file that is missing or no YAML mapping, an override that is not `key=value`.
    """
    try:
        return _read(Path(path), overrides, own or {})
    except RecursionError:  # PyYAML and OmegaConf go down one call, or several, a level
        raise ValueError(f"config {path}: nested too deeply: no key is more than a few levels down") from None


def overridden(values: Mapping[str, Any], overrides: Sequence[str], where: str) -> dict[str, Any]:
    """Return `values` with each `key=value` set in it, as `read` sets them.

    where: what the values are of, for messages.
    """
    return _overridden(OmegaConf.create(_literal(values)), overrides, where)


def write(values: Mapping[str, Any]) -> str:
    """Return YAML that `read` reads as `values`: nothing in it is interpolated."""
    return yaml.dump(_literal(values), Dumper=_Dumper, allow_unicode=True, sort_keys=False)


def _literal(value: Any) -> Any:
    """Return `value` with `${` in its texts escaped for OmegaConf: the backslashes before it doubled, and one
    more.
    """
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return {key: _literal(item) for key, item in value.items()} if isinstance(value, dict) else value


def _read(path: Path, overrides: Sequence[str], own: Mapping[str, str]) -> dict[str, Any]:
    merged = _with_bases(path, own)
    for key, value in own.items():
        if key not in merged.keys():  # noqa: SIM118 (`in merged` is false for a key whose value is ???)
            merged[key] = _literal(value)
    return _overridden(merged, overrides, str(path))


def _overridden(merged: Any, overrides: Sequence[str], where: str) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"{override!r}: not a key=value: write such as train.steps=100, in one word")
        try:
            value = _parsed(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{override}: the value is not YAML: {_not_yaml(error, text)}") from None
        try:
            OmegaConf.update(merged, key, value, merge=True, force_add=True)
        except IndexError:
            raise ValueError(
                f"{override}: the list has no such element: its first is [0], and to have more of them give "
                "the whole list"
            ) from None
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{override}: cannot be set: {_first_line(error)}") from None
    try:
        container = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ValueError(f"{where}: {key}: {_unresolved(error)}") from None
    return cast(dict[str, Any], container)


def _with_bases(path: Path, own: Mapping[str, str], above: tuple[Path, ...] = ()) -> Any:
    """Return the file over its base, over the base's base …; `above`: the files that led here."""
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
    handed_down = _with_bases(lower, own, chain)
    for key in own:
        handed_down.pop(key, None)
    return OmegaConf.merge(handed_down, content)


def _read_file(path: Path) -> DictConfig:
    try:
        with path.open("rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"config {path}: no such file{hint}") from None
    except PermissionError:
        raise ValueError(f"config {path}: may not be read by this user") from None
    except OSError as error:  # such as a network file system that does not answer
        raise OSError(f"config {path}: cannot be read at the moment: {error.strerror}") from error
    text = ""
    try:
        text = data.decode()
        values = _parsed(text)
        content = OmegaConf.create({} if values is None else values)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"config {path}, line {line}: not YAML: {_not_yaml(error, text)}") from None
    except OmegaConfBaseException as error:  # a null key, a !!set
        raise ValueError(f"config {path}: {_first_line(error)}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"config {path}: not YAML: {_first_line(error)}") from None
    if not isinstance(values, dict | None) or not isinstance(content, DictConfig):
        raise ValueError(f"config {path}: not a mapping of keys to values")
    return content


def _parsed(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (KeyError, IndexError, AttributeError) as error:  # PyYAML's, of !!bool x, !!int '' and the like
        raise ValueError(f"a tag that does not fit its value: {_first_line(error)}") from None


def _not_yaml(error: Exception, text: str) -> str:
    """What is wrong with the text, and the remedy where it is `{lr: ${key}}`: braces inside braces."""
    if not isinstance(error, yaml.MarkedYAMLError) or not error.problem or error.problem_mark is None:
        return _first_line(error)
    at = error.problem_mark.index
    quote = ': inside {…} and […] quote it: "${key}"' if "${" in text[max(at - 2, 0) : at + 2] else ""
    return error.problem + quote


def _unresolved(error: OmegaConfBaseException) -> str:
    """Why a `${…}` stands for nothing, and the remedy; OmegaConf's words where they are of its grammar."""
    line = _first_line(error)
    if found := re.search(r"Environment variable '(.*)' not found", line):
        name = found[1]
        return f"the environment variable {name} is not set: set it, or write ${{oc.env:{name},default}}"
    if found := re.search(r"Interpolation key '(.*)' not found", line):
        return (
            f"${{{found[1]}}}: the key {found[1]!r} is not found in this config, its bases or the command "
            "line: give it there, also where it has a default"
        )
    return line


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
