"""The names of tags that tables state in their schema, as Hugging Face's datasets do."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data.opening import open_bytes
from data.prepare.readers.table_columns import names_of
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import InputFile


def with_tag_names(files: Sequence[InputFile], recipe: Recipe) -> Recipe:
    """The recipe with the names of tags that the files state, where the command gives none.

    ValueError where two files state different ones.
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
    return replace(recipe, tag_name=[*next(iter(found), ())])


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
