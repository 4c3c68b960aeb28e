"""SQuAD's own files: `--task answers` reads them as the flat rows that `datasets` makes of them."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from data.prepare.document import Document
from data.prepare.prepare import prepare
from data.prepare.readers.dispatch import documents
from data.prepare.recipe import Recipe, for_task
from data.prepare.sources import sources
from data.prepare.tally import Tally
from data.prepare.units import FileRange
from prepared import tree

pytestmark = pytest.mark.usefixtures("no_pictures")

NORMANS = 'The "Normans" (Norman: Nourmands; Zürich 日本)\nwere in \\ the 10th century.'
OXYGEN = "Oxygen is [a] {chemical} element."


def asked(question: str, number: str, context: str, *texts: str, **more: Any) -> dict[str, Any]:
    answers = [{"text": text, "answer_start": context.index(text)} for text in texts]
    return {"question": question, "id": number, "answers": answers, **more}


V1: dict[str, Any] = {
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": NORMANS,
                    "qas": [
                        asked("Where?", "5733be284776f41900661182", NORMANS, "Zürich 日本", "日本"),
                        asked("When?", "5733be284776f41900661181", NORMANS, "10th century"),
                    ],
                },
                {"context": OXYGEN, "qas": [asked("What is it?", "a", OXYGEN, "{chemical} element")]},
            ],
        },
        {"title": "Empty", "paragraphs": []},
        {
            "title": "Oxygen",
            "paragraphs": [{"context": OXYGEN, "qas": [asked("Which?", "b", OXYGEN, "[a]")]}],
        },
    ],
    "version": "1.1",
}  # fmt: skip
PLAUSIBLE = {"text": "Oxygen", "answer_start": 0}
IMPOSSIBLE = asked(
    "Why?", "c", OXYGEN, is_impossible=True, plausible_answers=[{"text": "Oxygen", "answer_start": 0}]
)
V2: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Oxygen",
            "paragraphs": [
                {
                    "qas": [asked("What?", "d", OXYGEN, "element", is_impossible=False), IMPOSSIBLE],
                    "context": OXYGEN,
                }
            ],
        }
    ],
}  # fmt: skip


def flat(squad: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that `datasets` makes of a file."""
    return [
        {
            "question": qa["question"],
            "context": paragraph["context"],
            "answers": {key: [one[key] for one in qa["answers"]] for key in ("text", "answer_start")},
        }
        for article in squad["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def read(path: Path, **keys: Any) -> tuple[list[Document], Tally]:
    recipe, tally = for_task(Recipe(task="answers", **keys)), Tally()
    (file,) = sources.expand([str(path)], recipe)
    return [*documents(FileRange(file, 0, file.bytes), recipe, tally)], tally


def what(found: list[Document]) -> list[tuple[Any, ...]]:
    return [(one.text, one.second, one.marks, one.origin["answers"]) for one in found]


@pytest.mark.parametrize("squad", [V1, V2], ids=["v1.1", "v2.0"])
@pytest.mark.parametrize("form", ["one line", "unicode", "indented", "crlf", "bom", "utf-16", "gz"])
def test_questions_are_those_of_flat_rows(tmp_path: Path, squad: dict[str, Any], form: str) -> None:
    path = tmp_path / ("dev.json.gz" if form == "gz" else "dev.json")
    indent = 2 if form in ("indented", "crlf") else None
    text = json.dumps(squad, ensure_ascii=form == "one line", indent=indent)
    text = text.replace("\n", "\r\n") if form == "crlf" else text
    text = "\ufeff" + text if form == "bom" else text
    raw = text.encode("utf-16" if form == "utf-16" else "utf-8")
    path.write_bytes(gzip.compress(raw) if form == "gz" else raw)
    (tmp_path / "flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat(squad)))
    (found, tally), (expected, _) = read(path), read(tmp_path / "flat.jsonl")
    assert what(found) == what(expected) and len(found) == len(flat(squad))
    assert [one.origin["row"] for one in found] == [*range(len(found))]
    assert not tally.as_dict()["counts"]


def test_a_question_that_cannot_be_answered_has_no_answer(tmp_path: Path) -> None:
    given = {**IMPOSSIBLE, "answers": IMPOSSIBLE["plausible_answers"]}
    (tmp_path / "a.json").write_text(
        json.dumps({"data": [{"paragraphs": [{"context": OXYGEN, "qas": [given]}]}]})
    )
    ((found,), _) = read(tmp_path / "a.json")
    assert found.origin["answers"] == [] and found.marks is not None and len(found.marks.stretches) == 1


def test_flat_rows_below_data(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"version": "1", "data": flat(V1)}))
    (tmp_path / "b.json").write_text(json.dumps(V1))
    assert what(read(tmp_path / "a.json")[0]) == what(read(tmp_path / "b.json")[0])


def test_what_is_missing_is_counted_with_its_place(tmp_path: Path) -> None:
    misplaced = {"question": "Y?", "id": "g", "answers": [{"text": "x", "answer_start": 2}]}
    wrong: list[Any] = [
        {"context": OXYGEN},
        {"qas": [asked("What?", "e", OXYGEN, "element")]},
        {"context": OXYGEN, "qas": [{"question": "What?", "id": "f", "answers": "element"}]},
        {"context": OXYGEN, "qas": [misplaced]},
        "no paragraph",
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(
        json.dumps({"data": [{"paragraphs": wrong}, 3, V1["data"][2]]}, indent=1)
    )
    found, tally = read(tmp_path / "a.json")
    counts = {step: count[0] for step, count in tally.as_dict()["counts"].items()}
    assert (
        counts
        == {
            "removed.no_question": 4,
            "removed.no_answers": 1,
            "removed.answer_elsewhere": 1,
        }
        and len(found) == 1
    )
    (example,) = tally.as_dict()["examples"]["removed.answer_elsewhere"]
    assert example.startswith("a.json, line 3 (article 0, paragraph 3, question g) ('x' at 2)")  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-40], "EOFError: the JSON array does not end, line 1: cut short"),
        (lambda text: text[:-1], "what follows the JSON array that ends in line 1 is damaged or cut short"),
        (lambda text: text + "{}", "what follows the JSON array that ends in line 1 is damaged or cut short"),
        (lambda text: text.replace('"id":', '"id"', 1), r"OSError: line 1, column \d+: Expecting ':'"),
        (lambda text: text.replace('"data"', '"rows"'), "neither an array .* give SQuAD's"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    (tmp_path / "a.json").write_text(damage(json.dumps(V1)))
    with pytest.raises((RuntimeError, ValueError), match=message) as caught:
        read(tmp_path / "a.json", format="json")
    assert "\n" not in str(caught.value) and "a.json" in str(caught.value)


class Killed(BaseException):
    """No Exception, which a handler could take for one of the program's own."""


def make(folder: Path, workers: int = 1) -> int:
    recipe = Recipe(
        task="answers", window_tokens=64, window_overlap=8, shard_bytes=1 << 10, merge_splits=True
    )
    report = prepare(
        [str(folder.parent / "squad")], folder / "corpus", tokenizer="bytes", workers=workers, recipe=recipe,
        progress=False,
    )  # fmt: skip
    return report.train.documents


def test_a_killed_prepare_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the same bytes as one that was not killed."""
    (tmp_path / "squad").mkdir()
    for name in ("train.json", "dev.json"):
        (tmp_path / "squad" / name).write_text(json.dumps({**V1, "data": V1["data"] * 4}))
    count = make(tmp_path / "whole")
    assert count >= 2 * 4 * 4
    real, renames = os.replace, 0

    def replace(source: object, target: object) -> None:
        nonlocal renames
        renames += 1
        if renames == 7:
            raise Killed
        real(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            make(tmp_path / "killed")
    assert [*(tmp_path / "killed").rglob("*.tar")] and make(tmp_path / "killed") == count
    assert tree(tmp_path / "killed/corpus") == tree(tmp_path / "whole/corpus")
