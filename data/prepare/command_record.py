"""The record of a command in the folder that it makes (OUT/.prepare/plan.json), and what follows from it.

One `prepare` works in a folder at a time. The same command over the same files goes on where it was killed,
or finds that the corpus is there; another command is refused, unless nothing would be lost.
"""

import contextlib
import filecmp
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.lock import FolderLock
from data.corpus.manifest import MANIFEST, TEMPLATE_FILE, file_sha256
from data.prepare import recipe as recipes
from data.prepare.preparation import HELDOUT, TRAIN, NothingLeft, write_json
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import InputFile, as_text, kind_of
from data.tokenizer import training
from data.tokenizer.folders import BESIDES

COMMAND = "plan.json"
# The version of how sources are cut into units, read and encoded. Any change to these raises it: units that
# an older version finished and units of this one would not be parts of one corpus.
VERSION = 5
# Kinds of file that the first version took for text.
_ONCE_TEXT = {"json": "text", "ids": "text"}
_WRITTEN = (MANIFEST, "tokenizer.json", TEMPLATE_FILE, *BESIDES, "shard-*.tar", "shard-*.idx.npy")
_SIDES = {False: ("",), True: (f"{TRAIN}/", f"{HELDOUT}/")}
_MADE = ("evaluation.npy", "survey", "tokenizer.json", "units")


@contextlib.contextmanager
def hold_folder(out: Path, scratch: Path) -> Iterator[None]:
    """Hold the folder for one `prepare` at a time, on all hosts; it is free when the process has ended.

    Raises RuntimeError where another process holds the folder, ValueError where it cannot be written.
    """
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock = FolderLock.take(scratch, patience_seconds=0.0)
    except BlockingIOError:
        raise RuntimeError(
            f"another prepare is at work in {out}: wait for it, or give another --out"
        ) from None
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}: give another folder") from None
    try:
        yield
    finally:
        if not (scratch / COMMAND).exists():
            # The command was refused, or came to nothing: a mistyped source leaves no folder behind.
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                out.rmdir()
        lock.release()


def spool_stdin(scratch: Path) -> str:
    """Store standard input as a file, since it is read more than once; return the file's path.

    A killed command must be given the same input again.
    """
    path = scratch / "stdin.jsonl"
    temporary = path.with_name("stdin.jsonl.tmp")
    with open(temporary, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    if path.exists() and filecmp.cmp(path, temporary, shallow=False):
        temporary.unlink()  # the file that is there keeps its time, which is part of `input_hash`
    else:
        os.replace(temporary, path)
    return str(path)


def settings_of(
    sources: list[str],
    tokenizer: Path | str | None,
    train_tokenizer: int | None,
    heldout: float,
    recipe: Recipe,
) -> dict[str, Any]:
    """All settings that decide which bytes come out; the number of workers is not one of them.

    sources: as in the command.
    tokenizer: a path, or the name of one that is built.
    train_tokenizer: tokens of one that is trained.
    heldout: share that is held out.
    recipe: all other settings.
    """
    path = Path(tokenizer) if tokenizer is not None and tokenizer not in training.BUILT else None
    settings = {
        "sources": list(sources),
        "tokenizer": str(tokenizer) if tokenizer is not None else None,
        "tokenizer_sha256": file_sha256(path) if path is not None and path.is_file() else None,
        "train_tokenizer": train_tokenizer,
        "heldout": heldout,
        **recipes.as_dict(recipe),
    }
    return {key: _as_text(value) for key, value in settings.items()}


def _as_text(value: Any) -> Any:
    """A setting as a corpus stores it: as text, also where it names a file whose name is not UTF-8."""
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    return as_text(value) if isinstance(value, str) else value


def input_hash(files: list[InputFile]) -> str:
    """A hash that changes when any file is added, removed or written to."""
    return _hash_of((file.source, file.relative, file.bytes, file.changed_ns) for file in files)


def check_unchanged(files: list[InputFile], out: Path) -> None:
    """Raise RuntimeError where a local file was written to since `files` was made.

    A file that is gone is no error here: it was read before, or its reader has raised.
    """
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            if file.changed_ns and (found := os.stat(file.path)).st_mtime_ns != file.changed_ns:
                raise RuntimeError(
                    f"{file.path} was written to while it was read ({file.bytes:,} bytes before, "
                    f"{found.st_size:,} now): remove {out}, and prepare a copy that nobody writes to"
                )


def _earlier_hashes(files: list[InputFile], recipe: Recipe) -> list[str]:
    """`input_hash` of these files as earlier versions computed it.

    The file's kind was part of it, and a remote file had no folders. The first version took the kind from the
    name alone, and JSON and token ids for text.
    """
    names = [f.relative.rpartition("/")[2] if "://" in f.path else f.relative for f in files]
    by_name = [_ONCE_TEXT.get(kind := kind_of(file.path, recipe), kind) for file in files]
    return [
        _hash_of((f.source, name, kind, f.bytes, f.changed_ns) for f, name, kind in zip(files, names, kinds))
        for kinds in ([file.kind for file in files], by_name)
    ]


def _hash_of(facts: Iterable[tuple[str | int, ...]]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(repr(fact).encode())
    return digest.hexdigest()


def is_finished(
    scratch: Path, out: Path, asked: Sequence[dict[str, Any]], files: list[InputFile], recipe: Recipe
) -> bool:
    """Is the corpus in `out` whole, and made of these files, by whatever version of this program?

    scratch: the folder with the record.
    out: the folder of the corpus.
    asked: the settings to compare; one of these must be the record's.
    files: the files of the sources.
    recipe: decides how earlier versions hashed the files.
    """
    old = _read(scratch)
    if not old or not old["complete"] or not is_whole(out):
        return False
    known = [input_hash(files), *_earlier_hashes(files, recipe)]
    return old["input"] in known and any(not _changed(old, settings) for settings in asked)


def is_older(scratch: Path) -> bool:
    """Was the corpus made by another version of this program, which may read sources in another way?"""
    return _read(scratch).get("version") != VERSION


def is_whole(out: Path) -> bool:
    """Is there a corpus in `out`?"""
    return (out / MANIFEST).exists() or (out / TRAIN / MANIFEST).exists()


def begin(scratch: Path, command: dict[str, Any], out: Path) -> None:
    """Record the command, or go on with what the same command has begun.

    command: `version`, `settings`, `input` (a hash of the files) and `complete`, as in the file.

    Raises ValueError where the folder holds a corpus, or the unfinished work of another command.
    """
    old = _read(scratch)
    if not old and is_whole(out):
        raise ValueError(f"{out} holds a corpus already: give another --out, or remove it")
    if not old:
        _check_free(out, command["settings"])
        _discard(scratch)  # what tasks on other machines may have written after their command was given up
        write_json(scratch / COMMAND, command)
        return
    begun = any((scratch / name).exists() for name in _MADE)
    other_version = old.get("version") != command["version"]
    changed = _changed(old, command["settings"])
    if not changed and old["input"] != command["input"]:
        changed = ["the source files themselves"]
    if (changed or other_version or not begun) and not old["complete"] and not _holds_work(scratch):
        _discard(scratch)
        write_json(scratch / COMMAND, command)
        return
    if begun and not (old["complete"] and is_whole(out)) and other_version:
        raise ValueError(
            f"{out} holds an unfinished prepare, begun by another version of this program: remove {out}, or "
            "give another --out"
        )
    if changed:
        state = "holds a corpus" if old["complete"] else "holds an unfinished prepare"
        raise ValueError(
            f"{out} {state} with other settings ({'; '.join(changed)}): go on with those, give another "
            "--out, or remove it"
        )


def _check_free(out: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError where `out` holds a file that no `prepare` wrote and the corpus would overwrite."""
    split = settings["heldout"] or settings["heldout_match"]
    patterns = ["datacard*", *(f"{side}{name}" for side in _SIDES[bool(split)] for name in _WRITTEN)]
    for found in (found for pattern in patterns for found in sorted(out.glob(pattern))):
        raise ValueError(f"--out {out}: {found} is there, and would be written over: give another --out")


@contextlib.contextmanager
def given_up(scratch: Path) -> Iterator[None]:
    """After an error inside the `with` block, discard the record if no work is lost with it, whatever ran the
    work: it would only refuse the corrected command. Else it stays, and the same command goes on.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, NothingLeft) or not _holds_work(scratch):
            _discard(scratch)
        raise


def _holds_work(scratch: Path) -> bool:
    """Is there work that would be lost with the record: documents that were read, or a trained tokenizer?

    Records of units without a document, and a copied tokenizer, are no work.
    """
    trained = _read(scratch).get("settings", {}).get("train_tokenizer") is not None
    if trained and (scratch / "tokenizer.json").exists():
        return True
    records = (json.loads(path.read_text()) for path in (scratch / "units").glob("*.json"))
    if any(segment["shards"] for record in records for segment in record.get("segments", [record])):
        return True
    surveys = (json.loads(path.read_text()) for path in (scratch / "survey").glob("*.json"))
    return any(record.get("tally", record)["counts"].get("read") for record in surveys)


def _discard(scratch: Path) -> None:
    """Remove the record, first, and everything that its command made."""
    (scratch / COMMAND).unlink(missing_ok=True)
    for name in _MADE:
        path = scratch / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # a task of another machine may write there yet
        else:
            path.unlink(missing_ok=True)


def _read(scratch: Path) -> dict[str, Any]:
    """The record that is there; empty without one."""
    path = scratch / COMMAND
    return json.loads(path.read_text()) if path.exists() else {}


def _changed(old: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Settings that differ from those of an older record; what it does not have was the default then."""
    return recipes.differences({**recipes.as_dict(Recipe()), **old["settings"]}, settings)
