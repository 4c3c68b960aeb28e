"""Chat templates: Jinja, as in a Hugging Face tokenizer's `chat_template`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.prepare.recipe import Recipe

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BUILT = {"chatml": CHATML}
BEGIN, END = "\ufdd0", "\ufdd1"  # stand around what is marked; Unicode gives them no character, ever


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`, which stand around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_around"), [], [], body).set_lineno(line)

    def _around(self, caller: Any) -> str:
        return f"{BEGIN}{caller()}{END}"


def with_template(recipe: Recipe) -> Recipe:
    """The recipe with the text of its chat template in the place of the name of its file or folder.

    Raises ValueError where the file cannot be read, or is no template.
    """
    if recipe.task != "chat" or recipe.chat_template in BUILT:
        return recipe
    path = Path(recipe.chat_template)
    try:
        text = _text(path)
        compiled(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(
            f"--chat-template {path} cannot be read: {error}; give a file with a Jinja template, a Hugging "
            f"Face folder that has one, or {', '.join(BUILT)}"
        ) from None
    except jinja2.TemplateError as error:
        raise ValueError(f"--chat-template {path}: {error}") from None
    return replace(recipe, chat_template=text)


def _text(path: Path) -> str:
    """The template of a file, or of a tokenizer's folder."""
    if path.is_dir():
        own = path / "chat_template.jinja"
        path = own if own.is_file() else path / "tokenizer_config.json"
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return text
    given = json.loads(text).get("chat_template")
    if isinstance(given, list):  # several, by name
        given = next((one.get("template") for one in given if one.get("name") == "default"), None)
    if not isinstance(given, str):
        raise ValueError(f"{path.name} holds no chat_template")
    return given


def written(
    template: str,
    messages: Sequence[dict[str, Any]],
    where: str,
    *,
    separator: str,
    beginning: str,
    asked: bool = False,
) -> str:
    """The messages as the template writes them, with BEGIN and END where it says what is generated.

    separator, beginning: the template's `eos_token` and `bos_token`.
    asked: with the beginning of an answer behind them?

    Raises ValueError where the template is wrong, or refuses them.
    """
    try:
        return compiled(template).render(
            messages=messages,
            add_generation_prompt=asked,
            bos_token=beginning,
            eos_token=separator,
            tools=None,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"--chat-template: {where}: {' '.join(str(error).split())}") from None


@lru_cache(maxsize=1)
def compiled(template: str) -> jinja2.Template:
    """The template, which may neither change what it is given nor reach anything else."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime(2000, 1, 1).strftime(form)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    return environment.from_string(template)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
