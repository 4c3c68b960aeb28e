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
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.prepare.recipe import Recipe

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BUILT = {"chatml": CHATML}
MOST_STEPS = 1 << 18  # of a template's loops and macros, for a conversation
MOST_CHARACTERS = 1 << 26  # that a template writes
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


_BODIES = (nodes.For, nodes.Macro, nodes.CallBlock)


class Limited(ImmutableSandboxedEnvironment):
    """The sandbox, whose templates end: it counts the turns of loops and the calls of macros, and makes no
    number or text that fills the memory.

    steps: turns and calls so far.
    """

    intercepted_binops = frozenset(("*", "**"))  # not "+", which templates compute all the time
    steps = 0

    @property
    def step(self) -> bool:
        """Count a turn or a call; True. ValueError where there are more than `MOST_STEPS`. A property, for
        the sandbox makes calls slow.
        """
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise ValueError(f"takes more than {MOST_STEPS:,} turns of its loops: it may never end")
        return True

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`; ValueError where that would be too large."""
        if _size_of_result(operator, left, right) > MOST_CHARACTERS:
            raise ValueError(f"computes a value of more than {MOST_CHARACTERS:,} characters")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all(_BODIES):
            assert isinstance(node, _BODIES)
            counted = nodes.EnvironmentAttribute("step")
            node.body.insert(0, nodes.ExprStmt(counted))
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(counted, node.test)
            node.set_environment(self)
        return tree


def _size(value: Any) -> int:
    """Characters of a text, entries of a list, bits of an integer."""
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, str | list | tuple) else 0


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    if isinstance(right, int) and (operator == "**" or not isinstance(left, int)):
        return _size(left) * abs(right)
    if isinstance(left, int) and operator == "*" and not isinstance(right, int):
        return _size(right) * abs(left)
    return _size(left) + _size(right)


def with_template(recipe: Recipe) -> Recipe:
    """The recipe with the text of its chat template in the place of the name of its file or folder.

    Raises ValueError where the file cannot be read, or is no template.
    """
    if recipe.task != "chat" or recipe.chat_template in BUILT:
        return recipe
    path = Path(recipe.chat_template)
    try:
        text = _text(path)
    except (OSError, UnicodeDecodeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"--chat-template {path} cannot be read: {error}; give a file with a Jinja template, a Hugging "
            f"Face folder that has one, or {', '.join(BUILT)}"
        ) from None
    try:
        _try(text)
    except (jinja2.TemplateError, ValueError) as error:
        raise ValueError(f"--chat-template {path}: {' '.join(str(error).split())}") from None
    return replace(recipe, chat_template=text)


def _try(template: str) -> None:
    """Write a conversation, so that a wrong template is known before documents are read. One that refuses
    this conversation may take others.

    Raises jinja2.TemplateError where the text is no template, ValueError where it cannot be carried out, or
    where what it writes does not depend on what was said.
    """
    compiled(template)
    questions = [
        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": said}] for said in "ab"
    ]
    try:
        one, other = (_rendered(template, said, "", "", asked=False) for said in questions)
    except jinja2.TemplateError:
        return
    if one == other:
        raise ValueError(
            f"writes {one[:40]!r} whatever the assistant says: there would be nothing to learn: give the "
            "template of a chat model"
        )


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
        return _rendered(template, messages, separator, beginning, asked=asked)
    except (jinja2.TemplateError, ValueError) as error:
        raise ValueError(f"--chat-template: {where}: {' '.join(str(error).split())}") from None


def _rendered(
    template: str, messages: Sequence[dict[str, Any]], separator: str, beginning: str, *, asked: bool
) -> str:
    made = compiled(template)
    limits: Limited = made.environment  # type: ignore[assignment]
    limits.steps = 0
    parts, size = [], 0
    try:
        for part in made.generate(
            messages=messages,
            add_generation_prompt=asked,
            bos_token=beginning,
            eos_token=separator,
            tools=None,
        ):
            parts.append(part)
            size += len(part)
            if size > MOST_CHARACTERS:
                raise ValueError(f"writes more than {MOST_CHARACTERS:,} characters")
    except (jinja2.TemplateError, ValueError):
        raise
    except Exception as error:  # the template is a program of somebody else's: what it raises is its own
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return "".join(parts)


@lru_cache(maxsize=1)
def compiled(template: str) -> jinja2.Template:
    """The template, which may neither change what it is given nor reach anything else."""
    environment = Limited(
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
