"""A record (a row of a table, a JSON object) as the document of a task."""

from collections.abc import Callable
from typing import Any

from data.prepare.document import Document
from data.prepare.recipe import TASK_FIELDS, Recipe
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.tasks import answers, chat, tags
from data.prepare.tasks.templates import BUILT


def of_task(
    field: Callable[[str], Any],
    file: InputFile,
    origin: dict[str, Any],
    recipe: Recipe,
    tally: Tally,
    where: str,
) -> Document | None:
    """The document of a record under `recipe.task`; None, counted in the tally, where the record does not
    fit.

    field: the record's value of a field.
    """
    text, label = field(recipe.text_field), field(recipe.label_field)
    if recipe.task == "tags":
        return tags.tagged(text, label, recipe.tag_name, origin, tally, where)
    if recipe.task == "answers":
        return answers.answered(field(recipe.second_field), text, label, origin, tally, where)
    return chat.spoken(
        _messages(field, recipe),
        BUILT.get(recipe.chat_template, recipe.chat_template),
        separator=file.tokens.separator_text if file.tokens else "",
        beginning=file.tokens.beginning_text if file.tokens else "",
        special=file.tokens.special if file.tokens else (),
        origin=origin,
        tally=tally,
        where=where,
    )


def _messages(field: Callable[[str], Any], recipe: Recipe) -> Any:
    """The messages of a record: those of its field, else ShareGPT's; of a prompt and its answer, or of an
    instruction (Alpaca's), two.
    """
    if recipe.second_field:
        return _joined(field(recipe.text_field), field(recipe.second_field))
    messages = field(recipe.text_field)
    if messages is None and recipe.text_field == TASK_FIELDS["chat"]["text_field"]:
        messages = field("conversations")
        if messages is None and field("instruction") is not None:
            asked = [field("instruction"), field("input")]
            return _joined("\n\n".join(text for text in asked if text), field("output"))
        if messages is None:
            return _joined(field("prompt"), field("completion"))
    return messages


def _joined(prompt: Any, answer: Any) -> list[Any]:
    """A prompt and its answer as messages; each may be a list of messages itself."""
    pair = (("user", prompt), ("assistant", answer))
    parts = (part if isinstance(part, list) else [{"role": role, "content": part}] for role, part in pair)
    return [message for part in parts for message in part]
