"""A record (a row of a table, a JSON object) as the document of a task."""

from collections.abc import Callable
from typing import Any

from data.prepare.document import Document
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.tasks import answers, chat, tags


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
    messages = text
    if recipe.second_field:
        pair = (("user", text), ("assistant", field(recipe.second_field)))
        messages = [{"role": role, "content": text} for role, text in pair]
    return chat.spoken(
        messages,
        chat.BUILT.get(recipe.chat_template, recipe.chat_template),
        separator=file.tokens.separator_text if file.tokens else "",
        special=file.tokens.special if file.tokens else (),
        origin=origin,
        tally=tally,
        where=where,
    )
