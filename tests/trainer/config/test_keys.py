"""Every key states what it means and what it may be, and what is stated is what is refused."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from math import inf, nextafter
from typing import Annotated, Any, Literal

import pytest

from trainer.config import checks, keys, schema
from trainer.config.keys import Key
from trainer.config.run_config import RunConfig
from trainer.models.registry import MODELS
from trainer.objectives.registry import OBJECTIVES


def plain(model_kind: str = "") -> dict[str, Any]:
    """A whole config that is right, with every list of sections filled; of the model's sizes those that its
    kind has.
    """
    data = {"sources": [{"path": "a"}], "heldout": [{"path": "b"}], "stages": [{"weights": {"a": 1.0}}]}
    model = {"heads": 4, "hidden": 64}
    if model_kind in MODELS:
        known: Any = MODELS[model_kind]
        model = {name: size for name, size in model.items() if name in {one.name for one in fields(known)}}
    return {"name": "run", "model": model, "data": data, "parallel": {"layouts": [{}]}}


def keys_of_kind(kind: str) -> dict[str, Key]:
    """The keys of a config; `kind`: `model.kind=…` or `objective.kind=…`, whose section alone; "": all."""
    name, _, chosen = kind.partition(".kind=")
    values = plain(chosen if name == "model" else "")
    if kind:
        values[name] = values.get(name, {}) | {"kind": chosen}
    found = {key.name: key for key in keys.keys_of(schema.build(RunConfig, values))}
    return (
        {n: key for n, key in found.items() if n.startswith(f"{name}.") and n != f"{name}.kind"}
        if kind
        else found
    )


KINDS = ["", *(f"model.kind={kind}" for kind in MODELS), *(f"objective.kind={kind}" for kind in OBJECTIVES)]
KEYS_OF = {kind: keys_of_kind(kind) for kind in KINDS}
KEYS = KEYS_OF[""]
EVERY = [(kind, name) for kind, found in KEYS_OF.items() for name in found if not kind or name not in KEYS]
RULES = [(kind, KEYS_OF[kind][name], rule) for kind, name in EVERY for rule in KEYS_OF[kind][name].rules]


def chosen(kind: str) -> Iterator[tuple[str, Any]]:
    if kind:
        name, _, value = kind.partition("=")
        yield name, value


def refusal(*settings: tuple[str, Any]) -> str:
    """Why a config with these dotted keys is refused before any rank starts; "" where it is not."""
    values = plain(str(dict(settings).get("model.kind", "")))
    for name, value in settings:
        *path, last = name.replace("[]", ".0").split(".")
        at: Any = values
        for part in path:
            at = at[int(part)] if part.isdecimal() else at.setdefault(part, {})
        at[last] = value
    try:
        checks.check(schema.build(RunConfig, values))
    except ValueError as error:
        return str(error)
    return ""


def wrapped(key: Key, number: float) -> Any:
    """A value of the key's type that is made of `number`."""
    if "list" in str(key.hint):
        return [number] * (key.length or 2)
    return {"a": number} if "dict" in str(key.hint) else number


def numeric(key: Key) -> bool:
    return not key.choices and bool(re.search(r"\b(int|float)\b", str(key.hint)))


def several(key: Key) -> Iterator[Any]:
    """Values of a key with few: its choices, true and false, or its forms."""
    yield from key.choices or ((False, True) if key.hint is bool else ())
    yield from (form.replace("N,N…", "1,1").replace("N", "2") for form in key.forms)


def test_every_fact_is_understood() -> None:
    for of_kind, name in EVERY:
        known = KEYS | KEYS_OF[of_kind]
        key = known[name]
        kinds = (key.bounds, key.rules, key.forms, key.unit, key.length, "not empty" in key.facts)
        understood = sum(len(kind) if isinstance(kind, tuple) else bool(kind) for kind in kinds)
        assert understood - max(0, len(key.forms) - 1) == len(key.facts), key
        for rule in key.rules:
            for other, wanted in rule.conditions:
                assert other in known, rule
                assert set(wanted) <= set(map(keys.text, several(known[other]))), rule
            assert set(rule.of) <= set(map(keys.text, several(key))), rule


def test_the_defaults_are_right() -> None:
    assert refusal() == ""


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, name in EVERY if KEYS_OF[kind][name].bounds]
)
def test_a_bound_that_is_stated_is_kept(kind: str, name: str) -> None:
    key = KEYS_OF[kind][name]
    for bound in key.bounds:
        limit = float(KEYS[bound.limit].default if bound.limit in KEYS else bound.limit)
        whole = "int" in str(key.hint)
        below, above = (limit - 1, limit + 1) if whole else (nextafter(limit, -inf), nextafter(limit, inf))
        outside = {"≥": below, ">": limit, "≤": above, "<": limit}[bound.sign]
        outside -= whole and outside == bound.besides
        words = refusal(*chosen(kind), (name, wrapped(key, outside)))
        assert words.startswith(name.replace("[]", "[0]") + "=") and "must be" in words, words


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, name in EVERY if numeric(KEYS_OF[kind][name])]
)
def test_a_bound_that_is_kept_is_stated(kind: str, name: str) -> None:
    """What is refused for this key's own sake, no other key named, lies outside what it states."""
    known = KEYS | KEYS_OF[kind]
    key = known[name]
    for number in (-(2**40), -2, -1, -0.5, 0, 1e-9, 0.5, 1, 1.5, 2, 3, 1000, 2**40):
        if isinstance(number, float) and "int" in str(key.hint):
            continue
        words = refusal(*chosen(kind), (name, wrapped(key, number)))
        others = [other for other in known if re.search(rf"(?<![\w.]){re.escape(other)}\b", words)]
        if not words or set(others) - {name}:  # arithmetic over several keys
            continue
        values = {other: known[other].default for other in known}
        assert any(bound.broken(number, values) for bound in key.bounds), words


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, name in EVERY if list(several(KEYS_OF[kind][name]))]
)
def test_what_is_none_of_few_is_refused_with_the_nearest(kind: str, name: str) -> None:
    key = KEYS_OF[kind][name]
    wrong = "typo" if key.hint is bool or key.name == "parallel.zero" else f"{next(several(key))}x"
    words = refusal(*chosen(kind), (name, [wrong] if name == "track.tools" else wrong))
    assert words.startswith(name), words
    assert "not true or false" in words or "not one of" in words, words
    assert wrong == "typo" or "did you mean" in words, words


@pytest.mark.parametrize(
    ("kind", "key", "rule"), RULES, ids=lambda x: getattr(x, "name", getattr(x, "text", x if x else "any"))
)
def test_a_combination_that_is_stated_is_refused(kind: str, key: Key, rule: keys.Rule) -> None:
    known = KEYS | KEYS_OF[kind]
    made = [["a"]] if "list[str]" in str(key.hint) else [2]
    for value in rule.of or [value for value in several(key) if value != key.default] or made:
        settings = [*chosen(kind), *needed(key, value, known), (key.name, value)]
        for other, wanted in rule.conditions:
            fitting = [v for v in several(known[other]) if (keys.text(v) in wanted) != rule.needs]
            against = fitting[-1] if wanted else type(known[other].default)()
            settings += [*needed(known[other], against, known), (other, against)]
        words = refusal(*settings)
        assert rule.text in words and words.startswith(f"{key.name}={keys.text(value)} "), words
        assert f"set {key.name}={keys.text(key.default)}" in words


def needed(key: Key, value: Any, known: dict[str, Key]) -> Iterator[tuple[str, Any]]:
    """What a key's value asks of other keys."""
    for rule in key.rules:
        if rule.needs and (keys.text(value) in rule.of if rule.of else value != key.default):
            for other, wanted in rule.conditions:
                yield other, next((v for v in several(known[other]) if keys.text(v) in wanted), "somewhere")


def test_a_combination_that_is_refused_is_stated() -> None:
    """Every two values of keys with few: a refusal that names both keys is a rule of one of them."""
    few = {name: [v for v in several(key) if v != key.default] for name, key in KEYS.items()}
    for name in ("track.tools", "model.kind", "objective.kind"):  # whether two kinds fit is said elsewhere
        del few[name]
    found = 0
    for (a, ones), (b, others) in itertools.combinations(few.items(), 2):
        for one, other in itertools.product(ones, others):
            words = refusal((a, one), (b, other))
            if a in words and b in words:
                found += 1
                assert any(rule.text in words for name in (a, b) for rule in KEYS[name].rules), words
    assert found


@pytest.mark.parametrize(
    ("fact", "value", "words"),
    [
        ("≥ 0", -1, "odd=-1: must be 0 or more"),
        ("> 0", 0, "odd=0: must be above 0"),
        ("≥ 3", 2, "odd=2: must be at least 3"),
        ("-1 or ≥ 1", 0, "odd=0: must be at least 1, or -1"),
        ("≤ even", 5, "odd=5: must be at most even=4"),
        ("needs even=2", 1, "odd=1 needs even=2, and even=4: set that, or set odd=3"),
        (
            "5: not with even=4 (5 is prime)",
            5,
            "odd=5 not with even=4 (5 is prime): set odd=3, or change the other",
        ),
    ],
)
def test_the_words_of_a_refusal(fact: str, value: int, words: str) -> None:
    @dataclass
    class Numbers:
        odd: Annotated[int, "one more", fact] = 3
        even: Annotated[int, "one less"] = 4

    keys.check(Numbers(odd=3, even=2 if "=2" in fact else 4))
    with pytest.raises(ValueError) as caught:
        keys.check(Numbers(odd=value))
    assert str(caught.value) == words


@dataclass
class Apple:
    kind: Annotated[Literal["apple"], "which fruit"] = "apple"
    skin: Annotated[str, "its colour", "like red | N spots"] = "red"


@dataclass
class Pear:
    kind: Annotated[Literal["pear"], "which fruit"] = "pear"
    stem: Annotated[int, "its length", "≥ 1"] = 1
    skin: Annotated[str, "its colour", "like red | N spots"] = "2 spots"


@dataclass
class Basket:
    fruit: Apple | Pear = field(metadata={"kinds": {"apple": Apple, "pear": Pear}})


def test_kinds_are_listed_together_and_checked_apart() -> None:
    assert [key.name for key in keys.keys(Basket)] == ["fruit.kind", "fruit.skin", "fruit.stem"]
    assert keys.keys(Basket)[0].choices == ("apple", "pear")
    told = [(key.name, key.default, key.kinds) for key in keys.declarations(Basket)]
    assert told == [
        ("fruit.kind", "apple", ()),
        ("fruit.skin", "red", ("apple",)),
        ("fruit.skin", "2 spots", ("pear",)),
        ("fruit.stem", 1, ("pear",)),
    ]
    keys.check(Basket(Apple(skin="12 spots")))
    with pytest.raises(ValueError, match=r"fruit\.skin=rd: not one of red, N spots; did you mean red\?"):
        keys.check(Basket(Apple(skin="rd")))
    with pytest.raises(ValueError, match=r"fruit\.stem=0: must be at least 1"):
        keys.check(Basket(Pear(stem=0)))
