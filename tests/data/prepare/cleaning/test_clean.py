"""Every cleaning step takes out what its rule says, leaves the rest, and counts it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from data.prepare.cleaning import clean, quality
from data.prepare.cleaning.decontaminate import is_contaminated, write_evaluation_runs
from data.prepare.document import Document
from data.prepare.recipe import Recipe, check
from data.prepare.tally import Tally

RNG = random.Random(0)
COMMON = "the of and to in have with that be is".split()  # noqa: SIM905 (reads better)


def prose(words: int = 200, seed: int = 0) -> str:
    """Text that every filter keeps."""
    rng = random.Random(seed)
    made = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(words)]
    made[::7] = rng.choices(COMMON, k=len(made[::7]))
    return "\n".join(" ".join(made[at : at + 12]).capitalize() + "." for at in range(0, words, 12))


def cleaned(text: str, **recipe: object) -> tuple[str | None, dict[str, int]]:
    """(the text as it stays, or None; step → documents)"""
    chosen = Recipe(**recipe)  # type: ignore[arg-type]
    check(chosen)
    document, tally = Document(text, {"path": "x"}), Tally()
    kept = clean.cleaner(chosen, Path("none"))(document, tally)
    return document.text if kept else None, {step: count[0] for step, count in tally.counts.items()}


def test_good_prose_stays_untouched() -> None:
    every = {
        "filters": ["gopher_quality", "gopher_repetition", "c4"],
        "normal_form": "NFC",
        "fix_encoding": True,
    }
    assert cleaned(prose(), **every) == (prose(), {})


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("word_count", prose(49)),
        ("mean_word_length", "of a the b " * 30),
        ("mean_word_length", "of the " + "extraordinarily " * 60),
        ("symbols", prose() + " # # #" * 8),
        ("symbols", prose() + " ok..." * 23),
        ("bullets", "\n".join("- " + line for line in prose().splitlines())),
        ("ellipses", "\n".join(line + "…" * (n % 3 == 0) for n, line in enumerate(prose().splitlines()))),
        ("words_without_letters", prose(100) + " 1234" * 30),
        ("stop_words", " ".join(word for word in prose().split() if word.lower() not in COMMON)),
    ],
)
def test_gopher_quality(reason: str, text: str) -> None:
    assert quality.gopher_quality(text) == reason


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("repeated_lines", "\n".join(["short"] * 4 + prose(60).splitlines())),
        (
            "characters_in_repeated_lines",
            "\n".join([prose().replace("\n", " ")] * 2 + prose(70, 1).splitlines()),
        ),
        ("repeated_paragraphs", "\n\n".join(["a"] * 3 + [prose(120, n) for n in range(2)])),
        ("top_2_gram", " ".join(f"{word} very much" for word in prose(60).replace("\n", " ").split())),
        ("repeated_5_grams", (prose(30).replace("\n", " ") + " ") * 2 + prose(110, 1).replace("\n", " ")),
    ],
)
def test_gopher_repetition(reason: str, text: str) -> None:
    assert quality.gopher_repetition(text) == reason


def test_repeated_characters_are_counted_once_however_many_runs_hold_them() -> None:
    """The definition, counted the slow way, on random texts of few words."""
    rng = random.Random(1)
    for length in (2, 3, 5):
        words = rng.choices(["a", "bb", "ccc", "dddd"], k=60)
        seen, covered = set(), set()
        for at in range(len(words) - length + 1):
            run = tuple(words[at : at + length])
            if run in seen:
                covered.update(range(at, at + length))
            seen.add(run)
        numbers = quality.hashes(words)
        lengths = np.array([len(word) for word in words])
        slow = sum(len(words[place]) for place in covered)
        assert quality._repeated_characters(numbers, lengths, length) == slow


def test_c4() -> None:
    good = "This is a line of five words. And one more here! Is it?"
    assert quality.c4(good) == (good, "")
    bad = (
        "Menu\nPlease enable Javascript to see this page.\n"
        "We make use of cookies on this page.\nno end mark here at all"
    )
    assert quality.c4(f"{good}\n{bad}\nThe cat sat on the mat.[citation needed]") == (
        f"{good}\nThe cat sat on the mat.",
        "",
    )
    assert quality.c4(good + " { }")[1] == "curly_bracket"
    assert quality.c4(good + " Lorem ipsum")[1] == "lorem_ipsum"
    assert quality.c4("One sentence of quite enough words.")[1] == "few_sentences"
    assert cleaned(good + "\nMenu", filters=["c4"]) == (good, {"changed.c4_lines": 1})


def test_encoding_and_normal_form() -> None:
    pytest.importorskip("ftfy")
    assert cleaned("The Mona Lisa doesnâ€™t have eyebrows.", fix_encoding=True) == (
        "The Mona Lisa doesn’t have eyebrows.",
        {"changed.encoding_fixed": 1},
    )
    code = 'x = "&amp; “quoted” ﬁ"\r\n\tif x:'
    assert cleaned(code, fix_encoding=True) == (code, {})
    assert cleaned("e\u0301", normal_form="NFC") == ("é", {"changed.normal_form": 1})


def test_lengths_licences_and_emptiness() -> None:
    assert cleaned("four", min_characters=5) == (None, {"removed.too_short": 1})
    assert cleaned("four", max_characters=3) == (None, {"removed.too_long": 1})
    assert cleaned(" \n\t") == (None, {"removed.empty": 1})
    assert cleaned("text", licences=["MIT"]) == (None, {"removed.licence.not_stated": 1})
    keep, tally = clean.cleaner(Recipe(licences=["mit", "CC0"]), Path("none")), Tally()
    assert keep(Document("text", {"path": "x", "licence": "MIT"}), tally)
    assert not keep(Document("text", {"path": "x", "licence": "GPL-3.0"}), tally)
    assert tally.counts == {"removed.licence.not_allowed": [1, 4]}


def first_word(text: str) -> str:
    """A hook."""
    return text.split()[0]


def test_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = {"language_hook": "test_clean:first_word", "languages": ["en"]}
    assert cleaned("en text", **settings) == ("en text", {})
    assert cleaned("fr texte", **settings) == (None, {"removed.language.fr": 1})
    assert cleaned("mail a.b@example.org from 10.0.0.1, not 1.2.3", scrub_hook="data.scrub:contacts") == (
        "mail <email> from <ip>, not 1.2.3",
        {"changed.scrubbed": 1},
    )
    for name, message in (
        ("nowhere:f", "cannot be imported"),
        ("data.scrub:gone", "cannot be imported"),
        ("data.scrub", "does not name a function"),
        ("data.scrub:_EMAIL", "not a function"),
    ):
        with pytest.raises(ValueError, match=f"--scrub-hook '{name}'.*{message}"):
            cleaned("text", scrub_hook=name)


def test_decontamination(tmp_path: Path) -> None:
    question = prose(40, 9)
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": question, "options": ["too short"]}) + "\n")
    recipe = Recipe(decontaminate=[str(tmp_path / "eval.jsonl")])
    assert write_evaluation_runs(recipe, tmp_path / "evaluation.npy") == 1
    every = np.load(tmp_path / "evaluation.npy")
    words = question.replace("\n", " ").split()
    shared = " ".join(words[5:18]).upper().replace(" ", ", ")  # 13 words, other case, punctuation between
    assert is_contaminated(f"{prose()} {shared} {prose(50, 1)}", recipe, every)
    assert not is_contaminated(f"{prose()} {' '.join(words[5:17])} {prose(50, 1)}", recipe, every)
    assert not is_contaminated("a", recipe, every)
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(ValueError, match="no text there has 13 words"):
        write_evaluation_runs(Recipe(decontaminate=[str(tmp_path / "short.txt")]), tmp_path / "e.npy")
