"""Texts of Python's standard library: functions, and docstrings with the code that they describe."""

import ast
import json
import os
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Tests and installed packages, which not every machine has, and generated tables.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
_LEAST_FUNCTIONS = 50  # of a package that is a class
_LEAST_CHARACTERS = 40  # of a function's code, and of a docstring half of that


class Function(NamedTuple):
    """A function or method: its place, its source without the indentation, and its docstring, which `code`
    does not have.
    """

    path: str
    line: int
    source: str
    docstring: str
    code: str


def write_functions(folder: Path) -> None:
    """Write one row of JSON a function of a package: its source (`text`) and the package."""
    found = [function for function in functions() if "/" in function.path]
    counts = Counter(function.path.split("/")[0] for function in found)
    rows = (
        {"text": function.source, "package": package, "path": function.path, "line": function.line}
        for function in found
        if counts[package := function.path.split("/")[0]] >= _LEAST_FUNCTIONS
    )
    write_rows(folder / "functions.jsonl", rows)


def write_docstrings(folder: Path) -> None:
    """Write one row of JSON a function that has a docstring: the docstring (`text`) and the `code`."""
    rows = (
        {"text": function.docstring, "code": function.code, "path": function.path, "line": function.line}
        for function in functions()
        if 2 * len(function.docstring) >= _LEAST_CHARACTERS
    )
    write_rows(folder / "docstrings.jsonl", rows)


def functions() -> Iterator[Function]:
    """The functions and methods of the standard library, in the order of their files."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(_files(library)):
        path = file.relative_to(library)
        try:
            text = file.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (UnicodeDecodeError, SyntaxError):  # such as lib2to3's examples of Python 2
            continue
        lines = text.splitlines(keepends=True)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                function = _function(node, lines, path.as_posix())
                if len(function.code) >= _LEAST_CHARACTERS:
                    yield function


def _files(library: Path) -> Iterator[Path]:
    """The library's files, without a look into the folders that are left out: installed packages are many,
    and change while other programs run.
    """
    for folder, inside, names in os.walk(library):
        inside[:] = [name for name in inside if name not in _LEFT_OUT]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], path: str) -> Function:
    first = min(node.lineno, *(part.lineno for part in node.decorator_list), node.lineno) - 1
    source = lines[first : node.end_lineno]
    docstring, code = ast.get_docstring(node) or "", source
    if docstring and len(node.body) > 1:
        place = node.body[0]
        code = lines[first : place.lineno - 1] + lines[place.end_lineno : node.end_lineno]  # type: ignore[misc]
    return Function(path, node.lineno, _whole(source), docstring if code is not source else "", _whole(code))


def _whole(lines: list[str]) -> str:
    return textwrap.dedent("".join(lines)).strip("\n")


def write_rows(path: Path, rows: Iterator[dict[str, object]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
