"""Folders that hold a data set and not just files: which of the files are documents, and which are a split
that was meant to be kept apart.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

_SPLIT = re.compile(r"(?:split=)?(train|validation|valid|val|dev|test|heldout)(?=$|[-_.0-9])", re.IGNORECASE)
# Kinds that are rows of a data set; a folder of texts or of code may well have a folder named "test".
_ROWS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "ids", "webdataset")


def documents(folder: str, names: list[str]) -> list[str]:
    """Those of the named files of one folder that are documents: where Hugging Face's `datasets` saved to it,
    only the data files that its state.json lists; `map` leaves others beside them.

    Raises ValueError for a selection over a data set, whose files hold more than the selection, and
    RuntimeError for a state.json that cannot be read.
    """
    names = [name for name in names if name != "dataset_dict.json"]
    arrows = [name for name in names if name.endswith(".arrow")]
    described = [name for name in names if name.endswith((".arrow", ".json"))]
    if not described or not os.path.exists(os.path.join(folder, "state.json")):
        return names
    if not arrows and not any(name.endswith(".arrow") for name in os.listdir(folder or ".")):
        return names
    listed = _listed(folder) or set(arrows)
    return [name for name in names if name in listed or name not in described]


def documents_below(folder: str, out: str) -> list[str]:
    """The paths of all documents of a folder and of those in it, but for hidden ones and `out`. Links to
    folders are followed, each folder once: it may be linked to from two places, or from within itself.

    Raises as `documents` does, and OSError for a folder that cannot be read.
    """
    seen = {_identity(path) for path in (folder, out) if path and os.path.exists(path)}
    paths: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        below = [name for name in sorted(folders) if not name.startswith(".") and name != "__pycache__"]
        folders.clear()
        for name in below:
            if (identity := _identity(os.path.join(parent, name))) not in seen:
                seen.add(identity)
                folders.append(name)
        names = [name for name in names if not name.startswith(".")]
        paths += [os.path.join(parent, name) for name in documents(parent, names)]
    return paths


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> None:
    raise error


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


def check_splits(files: Iterable[tuple[str, str, str]], is_held_out: Callable[[str], bool]) -> None:
    """Raises ValueError where files (path, path below the source, kind) are splits of one data set, such as
    train and test, and nobody said which of them to read or to hold out: their folders or names differ in
    the split from the same place on, or they are of one source.
    """
    splits: dict[str, dict[str, set[bool]]] = {}
    for path, relative, kind in files:
        if kind not in _ROWS:
            continue
        held = is_held_out(relative)
        for place, split in ((path.removesuffix(relative), split_of(relative)), *_splits_of(path)):
            if split:
                splits.setdefault(place, {}).setdefault(split, set()).add(held)
    for place, found in splits.items():
        if len(found) > 1 and sum(False in held for held in found.values()) > 1:
            named = ", ".join(sorted(found))
            raise ValueError(
                f"{place.rstrip('/') or '.'} holds the splits {named} of one dataset: name the one to read, "
                "choose with --include, hold one out with --heldout-match, or read them as one with "
                "--merge-splits"
            )


def split_of(path: str) -> str:
    """The split that a file's folders or its name say it is of, or ""."""
    for part in path.split("/"):
        if found := _SPLIT.match(part):
            return found[1].lower()
    return ""


def _splits_of(path: str) -> Iterator[tuple[str, str]]:
    """(the folder that it is a split in, split) for each part of the path that is named as one."""
    folder, _, name = (path if "://" in path else os.path.abspath(path)).rpartition("/")
    yield from _splits_of_folder(folder)
    if found := _SPLIT.match(name):
        yield f"{folder}/", found[1].lower()


@lru_cache(1024)  # a folder has many files
def _splits_of_folder(folder: str) -> tuple[tuple[str, str], ...]:
    parts = folder.split("/")
    return tuple(
        ("".join(f"{before}/" for before in parts[:place]), found[1].lower())
        for place, part in enumerate(parts)
        if (found := _SPLIT.match(part))
    )
