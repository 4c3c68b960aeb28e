"""Chat templates that never end, raise, fill the memory or write nothing of what was said: one line each."""

from pathlib import Path

import pytest

from data.prepare.recipe import Recipe
from data.prepare.tally import Tally
from data.prepare.tasks import templates
from data.prepare.tasks.chat import spoken
from data.prepare.tasks.templates import with_template, written

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
LONG = "{% for i in range(99999) %}"
TEMPLATES = {
    LONG * 2 + "{% endfor %}" * 2: "takes more than 1,000 turns of its loops",
    LONG + "{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}": "turns of its loops",
    "{% for x in [[[]] * 999] * 300 recursive %}{{ loop(x) }}{% endfor %}": "turns of its loops",
    "{% for i in range(1000000000) %}{% endfor %}": "OverflowError: Range too big",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError: ",
    "{{ 'a' * 100000000000 }}": "computes a value of more than 67,108,864 characters",
    "{{ 1000 * [messages] * 1000000 }}": "computes a value of more than",
    "{% set n = namespace(a=2) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}": "computes a",
    "{{ 9 ** (9 ** 9) }}": "computes a value of more than",
    "{% for i in range(999) %}{{ 'a' * 999999 }}{% endfor %}": "writes more than 67,108,864 characters",
    "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    "{{ messages[0].content.index('z') }}": "substring not found",
    "{{ messages + 1 }}": "TypeError: ",
    "": "writes '' whatever the assistant says",
    "hello": "writes 'hello' whatever the assistant says",
    "{{ messages[0].content }}": "writes 'Who?' whatever the assistant says",
    "{% for %}": "Expected an expression",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_cannot_be_carried_out_is_one_line_with_its_file(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "MOST_STEPS", 1000)  # enough for what ends, and quick
    (file := tmp_path / "wrong.jinja").write_text(template)
    with pytest.raises(ValueError, match=r"^[^\n]{1,300}$") as caught:
        with_template(Recipe(task="chat", chat_template=str(file)))
    assert str(caught.value).startswith(f"--chat-template {file}: ")
    assert TEMPLATES[template] in str(caught.value)


@pytest.mark.parametrize("content", ["[]", '{"chat_template": 3}', "[" * 100_000])
def test_a_folder_whose_template_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^--chat-template [^\n]{1,300} cannot be read: "):
        with_template(Recipe(task="chat", chat_template=str(tmp_path)))


def test_one_that_refuses_some_conversations_is_taken_and_loops_know_their_end(tmp_path: Path) -> None:
    text = "{% if messages | length != 3 %}{{ raise_exception('three, please') }}{% endif %}"
    (file := tmp_path / "some.jinja").write_text(text)
    assert with_template(Recipe(task="chat", chat_template=str(file))).chat_template == text
    counted = "{% for m in messages if m.content %}{{ loop.index }}{{ m.content }}{{ loop.last }}{% endfor %}"
    assert written(counted, CHAT, "", separator="", beginning="") == "1hiFalse2yoTrue"


def test_a_conversation_of_whose_answer_nothing_is_written_is_left_out() -> None:
    said = Tally()
    template = "{% for m in messages if m.content != 'yo' %}{{ m.content }}{% endfor %}"
    arguments = {"separator": "", "beginning": "", "special": (), "origin": {}, "where": "here"}
    assert spoken(CHAT, template, tally=said, **arguments) is None
    assert said.counts == {"removed.message_written_otherwise": [1, 2]}
