"""Records that are no document of the task are counted; what the command must change is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.prepare.preparation import NothingLeft
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("row", "recipe", "step"),
    [
        ({"tokens": ["a", "b"], "ner_tags": [0]}, Recipe(task="tags"), "removed.no_tags"),
        ({"tokens": "a b", "ner_tags": [0, 1]}, Recipe(task="tags"), "removed.no_tags"),
        ({"context": "c", "answers": {}}, Recipe(task="answers"), "removed.no_question"),
        (
            {"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start": [2]}},
            Recipe(task="answers"),
            "removed.answer_elsewhere",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            Recipe(task="chat"),
            "removed.no_answer_in_messages",
        ),
        ({"messages": "a"}, Recipe(task="chat"), "removed.no_messages"),
        (
            {"messages": [{"role": "assistant", "content": "a<|endoftext|>b"}]},
            Recipe(task="chat"),
            "removed.special_token_in_message",
        ),
    ],
)
def test_records_that_do_not_fit_are_counted(
    tmp_path: Path, row: dict[str, Any], recipe: Recipe, step: str
) -> None:
    right: dict[str, dict[str, Any]] = {
        "tags": {"tokens": ["a"], "ner_tags": [0]},
        "answers": {"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start": [1]}},
        "chat": {"messages": [{"role": "assistant", "content": "a"}]},
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(right[recipe.task]) + "\n")
    report = prepare(
        [str(tmp_path / "a.jsonl")],
        tmp_path / "out",
        tokenizer="bytes",
        recipe=recipe,
        workers=1,
        progress=False,
    )
    assert report.counts[step][0] == 1 and report.train.documents == 1


@pytest.mark.parametrize(
    ("recipe", "row", "message"),
    [
        (Recipe(task="tags"), {"tokens": ["a"], "ner_tags": ["B-X"]}, "tag 'B-X'.*--tag-name gives none"),
        (Recipe(task="tags", tag_name=["O"]), {"tokens": ["a"], "ner_tags": [1]}, "--tag-name gives 1"),
        (
            Recipe(task="tags"),
            {"tokens": ["a", "b"], "ner_tags": [-5, 0]},
            "has the tag -5: of those below 0",
        ),
        (
            Recipe(task="chat", chat_template="missing.jinja"),
            {"messages": []},
            "--chat-template missing.jinja",
        ),
        (Recipe(task="sums"), {"text": "a"}, "--task 'sums' is none of"),
    ],
)
def test_what_the_command_must_change_is_one_line(
    tmp_path: Path, recipe: Recipe, row: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    source = [str(tmp_path / "a.jsonl")]
    with pytest.raises(ValueError, match=message) as caught:
        prepare(source, tmp_path / "out", tokenizer="bytes", recipe=recipe, workers=1, progress=False)
    assert "\n" not in str(caught.value)


def test_a_template_that_rewrites_earlier_messages_is_counted(tmp_path: Path) -> None:
    """Such as one that drops an answer's reasoning once another message follows."""
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] if loop.last else 'cut' }}\n{% endfor %}"
    )
    rows = [{"messages": chat} for chat in (CHAT * 2, CHAT * 3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(task="chat", chat_template=str(template))
    with pytest.raises(NothingLeft, match="rewrites a message"):
        prepare(
            [str(tmp_path / "a.jsonl")],
            tmp_path / "o",
            tokenizer="bytes",
            recipe=recipe,
            workers=1,
            progress=False,
        )
