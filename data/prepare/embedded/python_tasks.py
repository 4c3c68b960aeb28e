"""Labelled texts of Python's standard library: what each token of a function is, questions whose answers are
in its code, conversations about it. The labels are Python's own: its tokenizer's and its parser's.
"""

import ast
import io
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.prepare.embedded.python_sources import Function, functions, write_rows

_MOST_WORDS = 96  # of a function whose tokens are tagged
_MOST_CHARACTERS = 320  # of a context, and of an answer in a conversation
_LEFT_OUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def write_tags(folder: Path) -> None:
    """Write one row of JSON a short function: its `tokens`, and a tag for each (`ner_tags`)."""
    rows = (tagged for function in functions() if (tagged := _tagged(function)))
    write_rows(folder / "tags.jsonl", rows)


def write_answers(folder: Path) -> None:
    """Write rows of SQuAD's form: a `question` about a short function, the code as `context`, `answers`."""
    rows = (row for function in functions() for row in _questions(function))
    write_rows(folder / "answers.jsonl", rows)


def write_chats(folder: Path) -> None:
    """Write a conversation a function with a docstring: its code is shown, and described by the docstring's
    first line.
    """
    rows = (
        {
            "messages": [
                {"role": "system", "content": "Say what the code does."},
                {"role": "user", "content": function.code},
                {"role": "assistant", "content": function.docstring.strip().splitlines()[0]},
            ],
            "path": function.path,
            "line": function.line,
        }
        for function in functions()
        if function.docstring.strip() and len(function.code) <= _MOST_CHARACTERS
    )
    write_rows(folder / "chats.jsonl", rows)


def _tagged(function: Function) -> dict[str, Any] | None:
    """The tokens of a function with their tags; None of a long one, or where its source stands not alone."""
    node = _parsed(function.code)
    if node is None:
        return None
    kinds = dict(_names(node))
    words, tags = [], []
    for token in tokenize.generate_tokens(io.StringIO(function.code + "\n").readline):
        if token.type not in _LEFT_OUT:
            words.append(token.string)
            tags.append(kinds.get(token.start, "O"))
    if len(words) > _MOST_WORDS or any(word.isspace() or "\n" in word for word in words):
        return None
    return {"tokens": words, "ner_tags": tags, "path": function.path, "line": function.line}


def _names(node: ast.AST) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield the (line, column) of each name that has a tag, and the tag."""
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            words = 2 if isinstance(part, ast.AsyncFunctionDef) else 1
            yield (part.lineno, part.col_offset + len("def ") + (words - 1) * len("async ")), "B-FUNCTION"
        elif isinstance(part, ast.arg):
            yield (part.lineno, part.col_offset), "B-PARAMETER"
        elif isinstance(part, ast.Call):
            yield from _dotted(part.func, "CALL")
    for part in ast.walk(node):  # later, for what is raised is called as well
        if isinstance(part, ast.Raise) and part.exc is not None:
            yield from _dotted(part.exc.func if isinstance(part.exc, ast.Call) else part.exc, "EXCEPTION")
        elif isinstance(part, ast.ExceptHandler) and part.type is not None:
            caught = part.type.elts if isinstance(part.type, ast.Tuple) else [part.type]
            for one in caught:
                yield from _dotted(one, "EXCEPTION")


def _dotted(node: ast.expr, kind: str) -> Iterator[tuple[tuple[int, int], str]]:
    """The places of a name such as os.path.join, dots included; nothing of other expressions, or of one in
    several lines.
    """
    name = ast.unparse(node)
    if not all(part.isidentifier() for part in name.split(".")) or node.end_col_offset is None:
        return
    if node.end_lineno != node.lineno or node.end_col_offset - node.col_offset != len(name):
        return
    at, first = node.col_offset, True
    for number, part in enumerate(name.split(".")):
        if number:
            yield (node.lineno, at), f"I-{kind}"
            at += 1
        yield (node.lineno, at), f"{'B' if first else 'I'}-{kind}"
        at, first = at + len(part), False


def _questions(function: Function) -> Iterator[dict[str, Any]]:
    """What a function returns, raises, or has as a default; of some that do not, too."""
    code, node = function.code, _parsed(function.code)
    if node is None or len(code) > _MOST_CHARACTERS or not code.isascii():
        return
    lines = [0]
    for line in code.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def place(part: ast.expr) -> tuple[int, int]:
        assert part.end_lineno is not None and part.end_col_offset is not None
        return lines[part.lineno - 1] + part.col_offset, lines[part.end_lineno - 1] + part.end_col_offset

    parts = list(ast.walk(node))
    returned = [one.value for one in parts if isinstance(one, ast.Return) and one.value is not None]
    raised = [one.exc for one in parts if isinstance(one, ast.Raise) and one.exc is not None]
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = dict(zip([arg.arg for arg in positional][::-1], node.args.defaults[::-1]))
    asked = [("What does it return?", returned), ("What does it raise?", raised)]
    asked += [
        (f"What is the default of {arg.arg}?", [defaults[arg.arg]])
        for arg in positional
        if arg.arg in defaults
    ]
    for question, found in asked:
        places = [place(part) for part in found]
        # Of the questions without an answer, which are most, every fourth.
        if places or zlib.crc32(f"{question}{code}".encode()) % 4 == 0:
            answers = {
                "text": [code[begin:end] for begin, end in places],
                "answer_start": [begin for begin, _ in places],
            }
            yield {
                "question": question,
                "context": code,
                "answers": answers,
                "path": function.path,
                "line": function.line,
            }


def _parsed(code: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """A function's tree; None where its source does not stand alone, as one in a string."""
    try:
        (node,) = ast.parse(code).body
    except (SyntaxError, ValueError):
        return None
    return node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
