"""Which columns of a table are read: by their names, their types and what the command asks for."""

import json
import re
from typing import Any

from data.prepare.readers.records import partitions
from data.prepare.recipe import TASK_FIELDS, Recipe, option
from data.prepare.sources.sources import InputFile


def columns_to_read(schema: Any, file: InputFile, recipe: Recipe) -> list[str]:
    """The top-level columns to read: for the field "doc.body" the column `doc`."""
    names = [name for field in schema for name in _names(field)]
    need_column(names, file, recipe)
    _need_values(schema, file, recipe)
    wanted = {name if name in schema.names else name.split(".")[0] for name in _wanted(names, recipe)}
    return [name for name in schema.names if name in wanted]


def _wanted(names: list[str], recipe: Recipe) -> list[str]:
    if recipe.task == "chat":  # messages go by several names
        return names
    text = (
        [recipe.text_field]
        if _first_of_list(recipe.text_field) in names
        else [recipe.ids_field, "attention_mask"]
    )
    more = [recipe.second_field, recipe.label_field, recipe.image_field]
    return [*text, *more, recipe.licence_field, recipe.language_field]


def _names(field: Any) -> list[str]:
    """The name of a column, of the fields in it as "doc.body", and of a list's first value as "texts.0"."""
    if _is_list(field.type):
        return [field.name, f"{field.name}.0"]
    import pyarrow

    if not pyarrow.types.is_struct(field.type):
        return [field.name]
    inside = [f"{field.name}.{name}" for part in field.type for name in _names(part)]
    return [field.name, *inside]


def _is_list(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _need_values(schema: Any, file: InputFile, recipe: Recipe) -> None:
    """Raise ValueError where a column that is to hold a text or a class holds lists; tasks want lists."""
    if recipe.task:
        return
    for key in ("text_field", "second_field", "label_field"):
        name = getattr(recipe, key)
        if name in schema.names and _is_list(schema.field(name).type):
            raise ValueError(
                f"{file.path}: column {name!r} holds lists ({schema.field(name).type}): give {option(key)} "
                f"{name}.0 for the first of each"
            )


def class_names(schema: Any, recipe: Recipe) -> list[str]:
    """The names of the numbers in the column of classes, as Hugging Face's datasets state them in the
    schema; empty where they do not.
    """
    return names_of(schema, recipe.label_field)


def names_of(schema: Any, column: str) -> list[str]:
    """The names of the numbers in a column, or in its lists; empty where the schema states none."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = about["info"]["features"][column]
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        names = feature["names"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def need_column(columns: list[str], file: InputFile, recipe: Recipe) -> None:
    wanted = [name for name in (recipe.text_field, recipe.ids_field) if _first_of_list(name) in columns]
    if recipe.task == "chat" and recipe.text_field == TASK_FIELDS["chat"]["text_field"]:
        return  # `data.prepare.tasks.records` takes other names as well
    needs_text = not recipe.image_field or recipe.text_field != Recipe.text_field
    if not wanted and needs_text:
        pictures = [name.removesuffix(".bytes") for name in columns if name.endswith(".bytes")]
        hint = f"; the pictures are read with --image-field {pictures[0]}" if pictures else ""
        raise ValueError(
            f"{file.path} has no column {recipe.text_field!r}: give --text-field as one of "
            f"{', '.join(columns)}{_from_folders(file)}{hint}"
        )
    if wanted and columns.count(wanted[0]) > 1:
        raise ValueError(
            f"{file.path} has {columns.count(wanted[0])} columns {wanted[0]!r}: name one otherwise"
        )
    for key in ("second_field", "label_field", "image_field"):
        name = getattr(recipe, key)
        if name and _first_of_list(name) not in columns and name not in partitions(file):
            raise ValueError(
                f"{file.path} has no column {name!r}: give {option(key)} as one of {', '.join(columns)}"
                f"{_from_folders(file)}"
            )


def _first_of_list(name: str) -> str:
    """The name "texts.3" as `_names` lists it: "texts.0"."""
    return re.sub(r"\.\d+$", ".0", name)


def _from_folders(file: InputFile) -> str:
    names = list(partitions(file))
    return f" (and its folders say {', '.join(names)})" if names else ""
