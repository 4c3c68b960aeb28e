"""What a config dataclass declares of its keys, as data: for the checks and for `germinal config`.

A field is `name: Annotated[TYPE, MEANING, FACT…] = DEFAULT`, all in plain text, so that data, parallel and
the models state their keys without importing anything. The meaning is a phrase; a fact is one of

    ≥ 1   > 0   ≤ 1024   < data.seq_len   a bound, of the value or of each element; the limit may be a key
    -1 or ≥ 1                             the same, with one value besides
    in steps                              the unit
    not empty                             a text or a list must have something in it
    2 values                              the length of a list
    like none | every:N                   the forms of a text; N: a number of at least 1, N,N…: several
    needs KEY=V or V                      refused unless; a KEY alone: that key is given
    not with KEY=V and KEY=V (why)        refused if; the reason may follow, in brackets
    V or V: needs …   V: not with …       the same, of these values of the key; else of all but the default

`check` checks all that is declared here; no other code needs to.
"""

import dataclasses
import difflib
import operator
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from trainer.config import schema

REQUIRED = dataclasses.MISSING  # the default of a key that has none

_HOLDS = {"≥": operator.ge, ">": operator.gt, "≤": operator.le, "<": operator.lt}
_WORDS = {"≥": "at least", ">": "above", "≤": "at most", "<": "below"}
_BOUND = re.compile(r"(?:(?P<besides>-?\d+) or )?(?P<sign>[≥>≤<]) (?P<limit>\S+)")
_RULE = re.compile(
    r"(?:(?P<of>[^:]+): )?(?P<verb>needs|not with) (?P<conditions>[^(]+?)(?: \((?P<why>.+)\))?"
)


@dataclass(frozen=True)
class Bound:
    """A bound of a key's value, such as `≥ 1`.

    sign: ≥, >, ≤ or <.
    limit: a number, or the key that holds it.
    besides: one value that need not keep the bound.
    """

    sign: str
    limit: str
    besides: float | None

    def broken(self, value: float, values: Mapping[str, Any]) -> str:
        """Return the text of the bound where `value` breaks it; "" where it does not."""
        known = self.limit not in values
        limit = float(self.limit) if known else values[self.limit]
        if value == self.besides or _HOLDS[self.sign](value, limit):
            return ""
        if (self.sign, limit) == ("≥", 0):
            return "must be 0 or more"
        besides = "" if self.besides is None else f", or {self.besides:g}"
        return f"must be {_WORDS[self.sign]} {self.limit if known else f'{self.limit}={limit}'}{besides}"


@dataclass(frozen=True)
class Rule:
    """`needs` or `not with` other keys.

    text: the rule as it is declared.
    of: the key's values that the rule is about; empty: all but the default.
    needs: True for `needs`, False for `not with`.
    conditions: (key, its values), all of which must hold; no values: the key must be given.
    """

    text: str
    of: tuple[str, ...]
    needs: bool
    conditions: tuple[tuple[str, tuple[str, ...]], ...]

    def broken(self, key: "Key", value: Any, values: Mapping[str, Any]) -> str:
        """Return what is wrong and what to do where `key`=`value` breaks the rule; "" where it does not."""
        concerned = text(value) in self.of if self.of else value != key.default
        held = [_is(values[other], wanted) for other, wanted in self.conditions]
        if not concerned or all(held) == self.needs:
            return ""
        back = f"set {key.name}={text(key.default)}"
        if not self.needs:
            return f"{self.text}: {back}, or change the other"
        found = " and ".join(f"{other}={text(values[other])}" for other, _ in self.conditions)
        return f"{self.text}, and {found}: set that, or {back}"


@dataclass(frozen=True)
class Key:
    """One key of the config.

    name: dotted, `[]` for a list's elements.
    hint: its type.
    default: REQUIRED for none.
    meaning: a phrase.
    facts: bounds, unit, rules as declared, see above.
    choices: the values of a Literal.
    kinds: of a section with kinds, those that declare the key so; empty: the key is one for all.
    """

    name: str
    hint: Any
    default: Any
    meaning: str
    facts: tuple[str, ...]
    choices: tuple[Any, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        return next((fact.removeprefix("in ") for fact in self.facts if fact.startswith("in ")), "")

    @cached_property
    def bounds(self) -> tuple[Bound, ...]:
        found = (_BOUND.fullmatch(fact) for fact in self.facts)
        return tuple(
            Bound(m["sign"], m["limit"], float(m["besides"]) if m["besides"] else None) for m in found if m
        )

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(rule for fact in self.facts if (rule := _rule(fact)))

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """The forms that a text may have; empty: any."""
        like = next((fact for fact in self.facts if fact.startswith("like ")), "")
        return tuple(like.removeprefix("like ").split(" | ")) if like else ()

    @cached_property
    def length(self) -> int | None:
        """The number of values that a list must have."""
        return next((int(f.split()[0]) for f in self.facts if re.fullmatch(r"\d+ values", f)), None)

    @cached_property
    def elements(self) -> re.Pattern[str] | None:
        """What the names of its values match where the key is one of a list's elements."""
        pattern = re.escape(self.name).replace(re.escape("[]"), r"\[\d+\]")
        return re.compile(pattern) if "[]" in self.name else None

    @property
    def must_be_given(self) -> bool:
        """Whether a config without the key is refused."""
        return self.default is REQUIRED or (not self.default and "not empty" in self.facts)


@cache
def keys(cls: Any) -> tuple[Key, ...]:
    """Every key of a dataclass tree but the sections themselves, in the order of the source.

    As in `schema.build`, metadata may rename a key and give one dataclass for each `kind`; a key that several
    kinds share is listed for the first.
    """
    found: dict[str, Key] = {}
    for key in _keys(cls, ""):
        found.setdefault(key.name, key)
    return tuple(found.values())


def declarations(cls: Any) -> tuple[Key, ...]:
    """Every key as each kind declares it: one that kinds declare differently, such as with another default,
    is there once for each way, with the `kinds` that do. `kind` itself is one key.
    """
    alike: dict[str, dict[str, Key]] = {}  # name → declaration → the key, with its kinds so far
    for key in _keys(cls, ""):
        ways = alike.setdefault(key.name, {})
        if key.name.endswith(".kind") and key.kinds:
            ways.setdefault("", dataclasses.replace(key, kinds=()))
            continue
        like = repr(dataclasses.replace(key, kinds=()))
        known = ways.get(like)
        ways[like] = dataclasses.replace(key, kinds=(*known.kinds, *key.kinds)) if known else key
    return tuple(key for ways in alike.values() for key in ways.values())


def keys_of(cfg: Any) -> tuple[Key, ...]:
    """Every key of a config as it is: of the kinds that were chosen, and of no other."""
    whole: Any = type(cfg)
    by_kind = (field for field in dataclasses.fields(cfg) if "kinds" in field.metadata)
    chosen = ((schema.yaml_key(field), type(getattr(cfg, field.name))) for field in by_kind)
    return _chosen_keys(whole, tuple(chosen))


@cache
def _chosen_keys(cls: Any, chosen: tuple[tuple[str, Any], ...]) -> tuple[Key, ...]:
    return tuple(_keys(cls, "", chosen=dict(chosen)))


def _keys(
    cls: Any,
    at: str,
    kinds: tuple[str, ...] = (),
    chosen: Mapping[str, Any] | None = None,
    of: tuple[str, ...] = (),
) -> Iterator[Key]:
    """Yield the keys of a dataclass. kinds: those that the section may have; of: the one that `cls` is."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        annotated = hints[field.name]
        hint, *stated = typing.get_args(annotated) if hasattr(annotated, "__metadata__") else (annotated, "")
        name = f"{at}{schema.yaml_key(field)}"
        element = typing.get_args(hint)[0] if typing.get_origin(hint) is list else None
        by_kind = field.metadata.get("kinds", {})
        if by_kind or dataclasses.is_dataclass(hint):
            if chosen and name in chosen:
                yield from _keys(chosen[name], f"{name}.", tuple(by_kind))
                continue
            for kind, section in by_kind.items() or [("", hint)]:
                yield from _keys(section, f"{name}.", tuple(by_kind), of=(kind,) if kind else of)
            continue
        default = field.default if field.default_factory is REQUIRED else field.default_factory()
        literal = element if typing.get_origin(element) is typing.Literal else hint
        choices = typing.get_args(literal) if typing.get_origin(literal) is typing.Literal else ()
        choices = kinds if field.name == "kind" and kinds else choices
        yield Key(name, hint, default, stated[0], tuple(stated[1:]), choices, of)
        if dataclasses.is_dataclass(element):
            yield from _keys(element, f"{name}[].", of=of)


def check(cfg: Any) -> None:
    """Check all that the keys of a whole config declare about themselves and about one another.

    Raises:
        ValueError: one line with the key, its value, what must be and, of several keys, what to change.
    """
    values = dict(_values(cfg))
    elements = {at: value for at, value in values.items() if "]" in at}
    for key in filter(lambda key: key.facts, keys_of(cfg)):
        for at, value in _every(key, elements if key.elements else values):
            if wrong := _wrong(key, value, values):
                raise ValueError(f"{at}={text(value)}: {wrong}")
            for rule in key.rules:
                if wrong := rule.broken(key, value, values):
                    raise ValueError(f"{at}={text(value)} {wrong}")


def _wrong(key: Key, value: Any, values: Mapping[str, Any]) -> str:
    """Return what is wrong with a key's value; "" where it is right."""
    if not value and "not empty" in key.facts:
        return f"must not be empty: {key.meaning}"
    if key.length is not None and len(value) != key.length:
        return f"must have {key.length} values"
    if key.forms and not any(re.fullmatch(_pattern(form), value) for form in key.forms):
        near = difflib.get_close_matches(value, key.forms, n=1)
        return f"not one of {', '.join(key.forms)}" + (f"; did you mean {near[0]}?" if near else "")
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    broken = (bound.broken(part, values) for bound in key.bounds for part in parts)
    return next(filter(None, broken), "")


def _values(cfg: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything but sections; elements of a list of sections are `[0].`, `[1].` …"""
    for field in dataclasses.fields(cfg):
        name, value = f"{at}{schema.yaml_key(field)}", getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{name}.")
            continue
        yield name, value
        if isinstance(value, list):
            for index, element in enumerate(value):
                if dataclasses.is_dataclass(element):
                    yield from _values(element, f"{name}[{index}].")


def _every(key: Key, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The values of a key whose name may go through a list."""
    if key.elements:
        return [(at, value) for at, value in values.items() if key.elements.fullmatch(at)]
    return [(key.name, values[key.name])] if key.name in values else []  # another kind's key is not there


def _rule(fact: str) -> Rule | None:
    if not (match := _RULE.fullmatch(fact)):
        return None
    terms = (term.partition("=") for term in match["conditions"].split(" and "))
    conditions = tuple((key, tuple(wanted.split(" or ")) if equals else ()) for key, equals, wanted in terms)
    of = tuple(match["of"].split(" or ")) if match["of"] else ()
    return Rule(fact[match.start("verb") :], of, match["verb"] == "needs", conditions)


def _is(value: Any, wanted: tuple[str, ...]) -> bool:
    return text(value) in wanted if wanted else bool(value)


def _pattern(form: str) -> str:
    several = re.escape(form).replace(re.escape("N,N…"), "N(,N)*")
    return several.replace("N", "0*[1-9][0-9]*")


def text(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
