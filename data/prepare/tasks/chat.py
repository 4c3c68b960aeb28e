"""Messages and a chat template → one text, in which what the assistant said is marked.

A template is Jinja, as in a Hugging Face tokenizer's `chat_template`, with `messages`,
`add_generation_prompt`, `bos_token` and `eos_token`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.prepare.document import Document, Mark, Marks
from data.prepare.recipe import Recipe
from data.prepare.tally import Tally

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BUILT = {"chatml": CHATML}
LEARNT = 1  # the mark of a token that the assistant said
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names


def with_template(recipe: Recipe) -> Recipe:
    """The recipe with the text of its chat template in the place of the name of its file.

    Raises ValueError where the file cannot be read, or is no template.
    """
    if recipe.task != "chat" or recipe.chat_template in BUILT:
        return recipe
    path = Path(recipe.chat_template)
    try:
        text = path.read_text(encoding="utf-8")
        _compiled(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--chat-template {path} cannot be read: {error}; give a file with a Jinja template, or "
            f"{', '.join(BUILT)}"
        ) from None
    except jinja2.TemplateError as error:
        raise ValueError(f"--chat-template {path}: {error}") from None
    return replace(recipe, chat_template=text)


def spoken(
    messages: Any,
    template: str,
    *,
    separator: str,
    special: Sequence[str],
    origin: dict[str, Any],
    tally: Tally,
    where: str,
) -> Document | None:
    """The conversation as its template writes it, with the assistant's messages and what ends them marked.

    messages: [{"role": …, "content": …}], or ShareGPT's [{"from": …, "value": …}].
    template: its text.
    separator: the template's `eos_token`.
    special: texts of the tokenizer's special tokens. A conversation that holds one in a message is left out:
        the token would be read as the end of the message.

    None, counted in the tally, where there is nothing to learn, or where the template rewrites an earlier
    message once others follow: then what the assistant said cannot be told from the rest.
    Raises ValueError where the template is wrong.
    """
    said = _messages(messages)
    if not said:
        tally.add("removed.no_messages", 0, where)
        return None
    if any(token in one["content"] for one in said for token in special):
        tally.add("removed.special_token_in_message", 0, where)
        return None
    whole = _written(template, said, separator, where)
    stretches = []
    for place, one in enumerate(said):
        if one["role"] == "assistant":
            before = _written(template, said[:place], separator, where, asked=True)
            until = _written(template, said[: place + 1], separator, where)
            if not (whole.startswith(until) and until.startswith(before)):
                tally.add("removed.message_written_otherwise", len(whole), where)
                return None
            stretches.append(Mark(len(before), len(until), each=LEARNT))
    if not stretches:
        tally.add("removed.no_answer_in_messages", len(whole), where)
        return None
    return Document(whole, origin, marks=Marks(tuple(stretches), template=False))


def _messages(messages: Any) -> list[dict[str, str]]:
    """The messages by Hugging Face's names; none where they are not messages."""
    said = []
    for one in messages if isinstance(messages, list) else []:
        if not isinstance(one, dict):
            return []
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        said.append({"role": _ROLES.get(role, role), "content": content})
    return said


def _written(
    template: str, messages: list[dict[str, str]], separator: str, where: str, *, asked: bool = False
) -> str:
    try:
        return _compiled(template).render(
            messages=messages, add_generation_prompt=asked, bos_token="", eos_token=separator, tools=None
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"--chat-template: {where}: {error}") from None


@lru_cache(maxsize=1)
def _compiled(template: str) -> jinja2.Template:
    """The template, which may neither change what it is given nor reach anything else."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime(2000, 1, 1).strftime(form)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    return environment.from_string(template)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
