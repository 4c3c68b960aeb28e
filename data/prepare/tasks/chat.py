"""Messages and a chat template → one text, in which what the assistant said is marked."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from data.prepare.document import Document, Mark, Marks
from data.prepare.tally import Tally
from data.prepare.tasks.templates import BEGIN, END, written

LEARNT = 1  # the mark of a token that the assistant said
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}  # ShareGPT's

Write = Callable[..., str]


def spoken(
    messages: Any,
    template: str,
    *,
    separator: str,
    beginning: str,
    special: Sequence[str],
    origin: dict[str, Any],
    tally: Tally,
    where: str,
) -> Document | None:
    """The conversation as its template writes it, with the assistant's messages and what ends them marked.

    messages: [{"role": …, "content": …}], or ShareGPT's [{"from": …, "value": …}].
    template: its text. Where it says by itself what is generated, that is marked.
    separator, beginning: the template's `eos_token` and `bos_token`.
    special: texts of the tokenizer's special tokens. A conversation that holds one in a message is left out:
        the token would be read as the end of the message.

    None, counted in the tally, where there is nothing to learn, or where what the assistant said cannot be
    found in what the template writes. Raises ValueError where the template is wrong or refuses the
    conversation, and for a role that is not known.
    """
    said = _messages(messages, where)
    if not said:
        tally.add("removed.no_messages", 0, where)
        return None
    if any(token in one["content"] for one in said for token in (*special, BEGIN, END)):
        tally.add("removed.special_token_in_message", 0, where)
        return None
    write = partial(written, template, where=where, separator=separator, beginning=beginning)
    whole, found = _unwrapped(write(said))
    if not found and any(one["role"] == "assistant" for one in said):
        by_prefix = _by_prefix(write, said, whole)
        found = _by_content(write, said, whole) if by_prefix is None else by_prefix
        if not found:
            tally.add("removed.message_written_otherwise", len(whole), where)
            return None
    if not found:
        tally.add("removed.no_answer_in_messages", len(whole), where)
        return None
    stretches = tuple(Mark(begin, end, each=LEARNT) for begin, end in found)
    return Document(whole, origin, marks=Marks(stretches, template=False))


def _messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """The messages by Hugging Face's names, with what else they hold; none where they are not messages."""
    said = []
    for one in messages if isinstance(messages, list) else []:
        if not isinstance(one, dict):
            return []
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            texts = [part.get("text") for part in content]
            content = "".join(texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]
        if content is None and one.get("tool_calls"):
            content = ""
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        role = _OTHER_NAMES.get(role, role)
        if role not in ROLES:
            raise ValueError(
                f"{where}: a message has the role {role!r}: rename it to one of {', '.join(ROLES)}"
            )
        others = {
            key: value for key, value in one.items() if key not in ("from", "value") and value is not None
        }
        said.append({**others, "role": role, "content": content})
    return said


def _by_prefix(write: Write, said: list[dict[str, Any]], whole: str) -> list[tuple[int, int]] | None:
    """Where each answer is in the whole: from the end of the question to it to its own end. None where the
    template writes an earlier message otherwise once others follow.
    """
    found = []
    for place, one in enumerate(said):
        if one["role"] == "assistant":
            before, until = write(said[:place], asked=True), write(said[: place + 1])
            if not (whole.startswith(until) and until.startswith(before)):
                return None
            if before == until:  # nothing is written of the answer
                return []
            found.append((len(before), len(until)))
    return found


def _by_content(write: Write, said: list[dict[str, Any]], whole: str) -> list[tuple[int, int]]:
    """The same for templates that do so, such as those that write a last answer's (empty) reasoning: an
    answer is found by its content, and is what stands between the beginning that the template gives to
    answers and what it lets follow a last one. None of a conversation whose answers the template changes.
    """
    found: list[tuple[int, int]] = []
    for place, one in enumerate(said):
        if one["role"] != "assistant":
            continue
        wrapped = {**one, "content": f"{BEGIN}{one['content']}{END}"}
        text, here = _unwrapped(write([*said[:place], wrapped, *said[place + 1 :]]))
        last, at_last = _unwrapped(write([*said[:place], wrapped]))
        if text != whole or len(here) != 1 or len(at_last) != 1:
            return []
        ((begin, end),) = here
        header = write(said[:place], asked=True).removeprefix(write(said[:place]))
        after_header = whole.rfind(header, found[-1][1] if found else 0, begin) + len(header)
        pairs = zip(whole[end:], last[at_last[0][1] :])
        behind = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        found.append((after_header if header and after_header >= len(header) else begin, end + behind))
    return found


def _unwrapped(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without BEGIN and END, and the stretches between them."""
    if BEGIN not in text and END not in text:
        return text, []
    parts, found = text.split(BEGIN), []
    plain = parts[0].replace(END, "")
    for part in parts[1:]:
        inside, ended, rest = part.partition(END)
        if ended:
            found.append((len(plain), len(plain) + len(inside)))
        plain += inside + rest.replace(END, "")
    return plain, found
