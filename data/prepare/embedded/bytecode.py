"""What Python's compiler makes of the standard library's functions: sequences, one letter an instruction.

A letter stands for an operation and its argument: for each name (of an attribute, a global) that functions of
several packages use, and for small numbers. Names of one package alone have no letters, so that no letter
gives a package away, nor have constants. Of functions with the same letters there is one.
"""

import dis
import inspect
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.prepare.embedded import python_sources

_FIRST_LETTER = 0x4E00  # from here on Unicode has 20,000 letters in a row
_PACKAGES = 2  # that use a name which has letters
_LARGEST_NUMBER = 3  # that has a letter; it stands for larger ones too
_LEAST, _MOST = 16, 256  # instructions of a function
# Of every function, or of the interpreter's caches: they tell nothing.
_LEFT_OUT = {"RESUME", "PRECALL", "CACHE", "NOP", "EXTENDED_ARG"}
_OTHER = -1  # the argument that has no letter of its own
_NAMED = {*dis.hasname}


class Instructions(NamedTuple):
    """A function of a file of the library: its name with that of the class around it, and for each
    instruction the operation and its argument, a name or a number.
    """

    path: str
    name: str
    taken: tuple[tuple[int, str | int], ...]

    @property
    def package(self) -> str:
        return python_sources.package_of(self.path)


def write_functions(folder: Path) -> None:
    """Write one row of JSON a function of the largest packages: its instructions (`text`) and the package."""
    distinct = lettered(list(functions()))
    largest = python_sources.largest(each.package for each in distinct.values())
    rows: Iterator[dict[str, object]] = (
        {"text": text, "package": each.package, "path": each.path, "function": each.name}
        for text, each in distinct.items()
        if each.package in largest
    )
    python_sources.write_rows(folder / "bytecode.jsonl", rows)


def lettered(found: list[Instructions]) -> dict[str, Instructions]:
    """Letters → the first function that has them."""
    users: dict[str | int, set[str]] = {}
    for each in found:
        for _, argument in each.taken:
            users.setdefault(argument, set()).add(each.package)
    coded = [
        [(code, argument if len(users[argument]) >= _PACKAGES else _OTHER) for code, argument in each.taken]
        for each in found
    ]
    kinds = sorted({kind for code in coded for kind in code}, key=lambda kind: (kind[0], str(kind[1])))
    letters = {kind: chr(_FIRST_LETTER + number) for number, kind in enumerate(kinds)}
    backwards = zip(reversed(coded), reversed(found), strict=True)  # so that of equal ones the first stays
    distinct = {"".join(letters[kind] for kind in code): each for code, each in backwards}
    return dict(reversed(distinct.items()))


def functions() -> Iterator[Instructions]:
    """The functions and methods of the library's packages, in the order of their files."""
    for path, text in python_sources.texts():
        if "/" not in path:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # of strings with `\d` in them, and the like
                module = compile(text, path, "exec", dont_inherit=True, optimize=2)
        except SyntaxError:  # such as lib2to3's examples of Python 2
            continue
        for code in _inside(module):
            taken = tuple(_taken(code))
            if _LEAST <= len(taken) <= _MOST:
                yield Instructions(path, code.co_qualname, taken)


def _inside(code: types.CodeType) -> Iterator[types.CodeType]:
    """The functions in a module or in another function; no lambdas, comprehensions or bodies of classes."""
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            if each.co_flags & inspect.CO_OPTIMIZED and not each.co_name.startswith("<"):
                yield each
            yield from _inside(each)


def _taken(code: types.CodeType) -> Iterator[tuple[int, str | int]]:
    for each in dis.get_instructions(code):
        if each.opname not in _LEFT_OUT:
            named = each.opcode in _NAMED and isinstance(each.argval, str)
            yield each.opcode, each.argval if named else min(each.arg or 0, _LARGEST_NUMBER)
