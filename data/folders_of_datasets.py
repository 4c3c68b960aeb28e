"""Folders that hold a data set and not just files: which of the files are documents, and which are a split
that was meant to be kept apart.
"""

import json
import os
import re
from collections.abc import Callable, Mapping

_SPLIT = re.compile(r"(?:split=)?(train|validation|valid|val|dev|test|heldout)(?=$|[-_.0-9])", re.IGNORECASE)
# Kinds that are rows of a data set; a folder of texts or of code may well have a folder named "test".
_ROWS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "ids", "webdataset")


def documents(folder: str, names: list[str]) -> list[str]:
    """The files of one folder that are sources: without hidden ones, and, where Hugging Face's `datasets`
    saved to it, of its files only those that its state.json lists; `map` leaves others beside them.

    Raises ValueError for a selection over a data set, whose files hold more than the selection, and
    RuntimeError for a state.json that cannot be read.
    """
    names = [name for name in names if not name.startswith(".")]
    arrows = [name for name in names if name.endswith(".arrow")]
    if "dataset_dict.json" in names:
        names = [name for name in names if name != "dataset_dict.json"]
    if not arrows or "state.json" not in names:
        return names
    listed = _listed(folder) or set(arrows)
    return [name for name in names if name in listed or not name.endswith((".arrow", ".json"))]


def _listed(folder: str) -> set[str]:
    """The data files that a folder's state.json names."""
    path = os.path.join(folder, "state.json")
    try:
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        selection = state.get("_indices_data_files")
        listed = {str(entry["filename"]) for entry in state.get("_data_files") or []}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RuntimeError(
            f"{path} does not say which files the dataset has: save the dataset again, or remove this file "
            "to read every .arrow file beside it"
        ) from None
    if selection:
        raise ValueError(
            f"source {folder} is a selection over a dataset: save it again after flatten_indices()"
        )
    return listed


def check_splits(folder: str, kinds: Mapping[str, str], is_held_out: Callable[[str], bool]) -> None:
    """Raises ValueError where the files (path below `folder` → kind) are splits of one data set, such as
    train and test, and nobody said which of them to read or to hold out.
    """
    splits: dict[str, set[bool]] = {}
    for path, kind in kinds.items():
        if kind in _ROWS and (split := split_of(path)):
            splits.setdefault(split, set()).add(is_held_out(path))
    together = [split for split, held in splits.items() if False in held]
    if len(splits) > 1 and len(together) > 1:
        named = ", ".join(sorted(splits))
        raise ValueError(
            f"source {folder} holds the splits {named}: name the files or folders to read, choose with "
            "--include, or hold one out with --heldout-match"
        )


def split_of(path: str) -> str:
    """The split that a file's folders or its name say it is of, or ""."""
    for part in path.split("/"):
        if found := _SPLIT.match(part):
            return found[1].lower()
    return ""
