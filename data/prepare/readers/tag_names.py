"""The names of tags that files state: tables in their schema, as Hugging Face's datasets do, and files of
columns word by word.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data.opening import open_bytes
from data.prepare.readers.conll import sentences
from data.prepare.readers.dispatch import naming_damage
from data.prepare.readers.table_columns import names_of
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.units import FileRange


def with_tag_names(files: Sequence[InputFile], recipe: Recipe) -> Recipe:
    """The recipe with the names of tags that the files state, where the command gives none: those of a
    schema, else every tag in the files of columns, in alphabetical order behind "O".

    ValueError where two schemas state different ones; RuntimeError where a file of columns is damaged.
    """
    if recipe.task != "tags" or recipe.tag_name:
        return recipe
    found: dict[tuple[str, ...], str] = {}
    for file in files:
        if file.kind in ("parquet", "arrow") and (names := _stated(file, recipe)):
            found.setdefault(tuple(names), file.path)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise ValueError(
            f"{first} has the tags {', '.join(one)}, and {second} {', '.join(other)}: prepare them apart, or "
            "give the names with --tag-name"
        )
    stated = next(iter(found), None) or _of_columns(files, recipe)
    return replace(recipe, tag_name=[*stated])


def _of_columns(files: Sequence[InputFile], recipe: Recipe) -> list[str]:
    """Every tag of the files of columns, "O" first: one pass over them."""
    found: set[str] = set()
    for file in (file for file in files if file.kind == "conll"):
        part = FileRange(file, 0, file.bytes)
        with naming_damage(part):
            for sentence in sentences(part, recipe, Tally()):
                found.update(tag for tag in sentence.tags if tag is not None)
    return sorted(found, key=lambda tag: (tag != "O", tag))


def _stated(file: InputFile, recipe: Recipe) -> list[str]:
    """The names in one file's schema; none where it cannot be read, which its reader tells of."""
    import pyarrow
    import pyarrow.parquet

    try:
        with open_bytes(file.path) as stream:
            return names_of(_schema(stream, file.kind), recipe.label_field)
    except (OSError, pyarrow.ArrowException):
        return []


def _schema(stream: Any, kind: str) -> Any:
    import pyarrow

    if kind == "parquet":
        return pyarrow.parquet.read_schema(stream)
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    return (pyarrow.ipc.open_file(stream) if is_file else pyarrow.ipc.open_stream(stream)).schema
