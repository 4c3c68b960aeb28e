"""Texts of Python's standard library: functions, and docstrings with the code that they describe."""

import ast
import json
import os
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# Tests and installed packages, which not every machine has, and generated tables.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
_LEAST_FUNCTIONS = 50  # of a package that is a class
_LARGEST = 8  # packages, where there shall be few classes
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
    counts = Counter(package_of(function.path) for function in found)
    rows = (
        {"text": function.source, "package": package, "path": function.path, "line": function.line}
        for function in found
        if counts[package := package_of(function.path)] >= _LEAST_FUNCTIONS
    )
    write_rows(folder / "functions.jsonl", rows)


def write_largest(folder: Path) -> None:
    """Write one row of JSON a function of the largest packages: its source without docstring (`text`), and
    the package. Of functions with the same code there is one.
    """
    found = {function.code: function for function in functions() if "/" in function.path}
    packages = largest(package_of(function.path) for function in found.values())
    rows = (
        {"text": code, "package": package_of(function.path), "path": function.path, "line": function.line}
        for code, function in found.items()
        if package_of(function.path) in packages
    )
    write_rows(folder / "functions.jsonl", rows)


def package_of(path: str) -> str:
    """The package of a file of the library."""
    return path.split("/")[0]


def largest(packages: Iterable[str]) -> set[str]:
    """The packages that are named most often."""
    ranked = sorted(Counter(packages).items(), key=lambda each: (-each[1], each[0]))
    return {package for package, _ in ranked[:_LARGEST]}


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
    for path, text in texts():
        try:
            tree = ast.parse(text)
        except SyntaxError:  # such as lib2to3's examples of Python 2
            continue
        lines = text.splitlines(keepends=True)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                function = _function(node, lines, path)
                if len(function.code) >= _LEAST_CHARACTERS:
                    yield function


def texts() -> Iterator[tuple[str, str]]:
    """The path below the library and the text of each of its files, in order."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(_files(library)):
        try:
            yield file.relative_to(library).as_posix(), file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


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
