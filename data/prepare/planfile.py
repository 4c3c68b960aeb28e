"""What a folder in the making knows of the command that makes it: one at a time, and the same one again."""

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

from common.lock import take_lock
from data.corpus.manifest import MANIFEST, file_sha256
from data.prepare import recipe as recipes
from data.prepare.job import HELDOUT, TRAIN, write_json
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import InputFile, as_text, kind_of
from data.tokenizer import tokenizer as tokenizers

PLAN = "plan.json"
# Of how sources are cut into units, read and encoded. It goes up with any change to these: units that an
# older version finished and units of this one would not be the parts of one corpus.
VERSION = 3
# Kinds that the first version did not know by a file's name.
_ONCE_TEXT = {"json": "text", "ids": "text"}
_WRITTEN = (MANIFEST, "tokenizer.json", "shard-*.tar", "shard-*.idx.npy")
_SIDES = {False: ("",), True: (f"{TRAIN}/", f"{HELDOUT}/")}
_MADE = ("evaluation.npy", "survey", "tokenizer.json", "units")


@contextlib.contextmanager
def lock(out: Path, scratch: Path) -> Iterator[None]:
    """One `prepare` at a time in a folder; the lock goes with the process, however it ends."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        descriptor = take_lock(scratch / "lock", patience_seconds=0.0)
    except BlockingIOError:
        raise RuntimeError(
            f"another prepare is at work in {out}: wait for it, or give another --out"
        ) from None
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}: give another folder") from None
    try:
        yield
    finally:
        if not (scratch / PLAN).exists():
            # It ended before it began: a mistyped source leaves no folder behind.
            shutil.rmtree(scratch)
            with contextlib.suppress(OSError):
                out.rmdir()
        os.close(descriptor)


def spool_stdin(scratch: Path) -> str:
    """Standard input as a file, since it is read more than once; a resumed run must be given the same
    again.
    """
    path = scratch / "stdin.jsonl"
    temporary = path.with_name("stdin.jsonl.tmp")
    with open(temporary, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    if path.exists() and filecmp.cmp(path, temporary, shallow=False):
        temporary.unlink()  # the one there keeps its time, which the plan has recorded
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
    """All that decides what comes out; how many workers do it is not among it."""
    path = Path(tokenizer) if tokenizer is not None and tokenizer not in tokenizers.BUILT else None
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
    """A setting as a corpus holds it; it may name files."""
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    return as_text(value) if isinstance(value, str) else value


def input_hash(files: list[InputFile]) -> str:
    """Changes when any file is added, taken away or written to."""
    return _hash_of((file.source, file.relative, file.bytes, file.changed_ns) for file in files)


def check_unchanged(files: list[InputFile], out: Path) -> None:
    """RuntimeError where a local file is not as it was found at the beginning. One that is gone was read
    before, or its reader has said so.
    """
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            if file.changed_ns and (found := os.stat(file.path)).st_mtime_ns != file.changed_ns:
                raise RuntimeError(
                    f"{file.path} was written to while it was read ({file.bytes:,} bytes before, "
                    f"{found.st_size:,} now): remove {out}, and prepare a copy that nobody writes to"
                )


def _earlier_hashes(files: list[InputFile], recipe: Recipe) -> list[str]:
    """What earlier versions took for the hash of these files: it had their kinds in it, remote files had no
    folders, and the first version went by a file's name alone, and took JSON and token ids for text.
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
    """Is the corpus in `out` whole, and made by one of the settings `asked` of these files, in whatever
    version of this program?
    """
    old = _read(scratch)
    if not old or not old["complete"] or not is_whole(out):
        return False
    known = [input_hash(files), *_earlier_hashes(files, recipe)]
    return old["input"] in known and any(not _changed(old, settings) for settings in asked)


def is_older(scratch: Path) -> bool:
    """Was the corpus made by another version of this program, which may read sources otherwise?"""
    return _read(scratch).get("version") != VERSION


def is_whole(out: Path) -> bool:
    """Is there a corpus in `out`?"""
    return (out / MANIFEST).exists() or (out / TRAIN / MANIFEST).exists()


def begin(scratch: Path, plan: dict[str, Any], out: Path) -> None:
    """Writes the plan, or goes on with the same one. Raises ValueError where what is there was begun with
    something else.
    """
    old = _read(scratch)
    if not old and is_whole(out):
        raise ValueError(f"{out} holds a corpus already: give another --out, or remove it")
    if not old:
        _check_free(out, plan["settings"])
        write_json(scratch / PLAN, plan)
        return
    begun = any((scratch / name).exists() for name in _MADE)
    other_version = old.get("version") != plan["version"]
    changed = _changed(old, plan["settings"])
    if not changed and old["input"] != plan["input"]:
        changed = ["the source files themselves"]
    if (changed or other_version or not begun) and not old["complete"] and not _holds_work(scratch):
        _discard(scratch)
        write_json(scratch / PLAN, plan)
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
    """ValueError where a file of somebody else's has a name that a corpus in `out` would write."""
    split = settings["heldout"] or settings["heldout_match"]
    patterns = ["datacard*", *(f"{side}{name}" for side in _SIDES[bool(split)] for name in _WRITTEN)]
    for found in (found for pattern in patterns for found in sorted(out.glob(pattern))):
        raise ValueError(f"--out {out}: {found} is there, and would be written over: give another --out")


class NothingLeft(ValueError):
    """A side of the corpus has no document: the same command on the same files would always end so."""


@contextlib.contextmanager
def given_up(scratch: Path) -> Iterator[None]:
    """After a ValueError, nothing is kept that only refuses the corrected command."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, NothingLeft) or not _holds_work(scratch):
            _discard(scratch)
        raise


def _holds_work(scratch: Path) -> bool:
    """Was anything made that another command would have to make again: documents that were read, or a
    tokenizer that was trained? Records of units without a document and a copied tokenizer are no work.
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
    """Removes the plan, first, and all that was made by it."""
    (scratch / PLAN).unlink(missing_ok=True)
    for name in _MADE:
        path = scratch / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read(scratch: Path) -> dict[str, Any]:
    """The plan that is there, or nothing."""
    path = scratch / PLAN
    return json.loads(path.read_text()) if path.exists() else {}


def _changed(old: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Settings that are not those of an old plan; one that came later was what it is by default."""
    return recipes.differences({**recipes.as_dict(Recipe()), **old["settings"]}, settings)
