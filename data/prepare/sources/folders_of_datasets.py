"""Folders that hold a saved data set: which of the files hold documents, and which splits are meant to be
kept apart.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

_SPLIT = re.compile(r"(?:split=)?(train|validation|valid|val|dev|test|heldout)(?=$|[-_.0-9])", re.IGNORECASE)
# Kinds that hold rows of a data set; a folder of texts or code may have a folder named "test" that is no
# split.
_ROWS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "ids", "webdataset")


def documents(folder: str, names: list[str]) -> list[str]:
    """Those of the named files of one folder that hold documents.

    Where Hugging Face's `datasets` has saved to the folder, only the data files that its state.json lists:
    `map` leaves others beside them. Beside NAME.tar, img2dataset's record of it (NAME.parquet,
    NAME_stats.json) holds none.

    Raises ValueError for a selection over a data set, whose files hold more than the selection; RuntimeError
    for a state.json that cannot be read.
    """
    records = {
        name.removesuffix(".tar") + of
        for name in names
        if name.endswith(".tar")
        for of in (".parquet", "_stats.json")
    }
    names = [name for name in names if name != "dataset_dict.json" and name not in records]
    arrows = [name for name in names if name.endswith(".arrow")]
    described = [name for name in names if name.endswith((".arrow", ".json"))]
    if not described or not os.path.exists(os.path.join(folder, "state.json")):
        return names
    if not arrows and not any(name.endswith(".arrow") for name in os.listdir(folder or ".")):
        return names
    listed = _listed(folder) or set(arrows)
    return [name for name in names if name in listed or name not in described]


def documents_below(folder: str, out: str) -> list[str]:
    """The paths of all files with documents in a folder and below it, without hidden ones and without `out`.

    Links to folders are followed, but each folder is read once: links may lead to it from two places, or from
    within itself.

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
    """Raise ValueError where the files are several splits of one data set, such as train and test, and the
    command does not say which of them to read or to hold out.

    Files are splits of one data set if they are of one source, or if the split is the first thing in which
    their paths differ.

    files: (path, path below the source, kind) of each file.
    is_held_out: path below the source → is the file held out by name?
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
    """The split that a file's folders or its name state, or ""."""
    for part in path.split("/"):
        if found := _SPLIT.match(part):
            return found[1].lower()
    return ""


def _splits_of(path: str) -> Iterator[tuple[str, str]]:
    """Yield (the folder that holds the split, split) for each part of the path that is named as a split."""
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
