"""What a folder in the making knows of the command that makes it: one at a time, and the same one again."""

import contextlib
import fcntl
import filecmp
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import recipe as recipes
from data import tokenizer as tokenizers
from data.job import TRAIN, write_json
from data.manifest import MANIFEST, file_sha256
from data.recipe import Recipe
from data.sources import InputFile

PLAN = "plan.json"
# Of how sources are cut into units, read and encoded. It goes up with any change to these: units that an
# older version finished and units of this one would not be the parts of one corpus.
VERSION = 3
_MADE = ("evaluation.npy", "survey", "tokenizer.json", "units")


@contextlib.contextmanager
def lock(out: Path, scratch: Path) -> Iterator[None]:
    """One `prepare` at a time in a folder; the lock goes with the process, however it ends."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        file = open(scratch / "lock", "w")  # noqa: SIM115 (open for as long as the lock is held)
    except OSError as error:
        raise ValueError(f"out={out} cannot be written: {error.strerror}: give another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another prepare is at work in {out}: wait for it, or give another --out"
            ) from None
        try:
            yield
        finally:
            if not (scratch / PLAN).exists():
                # It ended before it began: a mistyped source leaves no folder behind.
                shutil.rmtree(scratch)
                with contextlib.suppress(OSError):
                    out.rmdir()


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
    return {
        "sources": list(sources),
        "tokenizer": str(tokenizer) if tokenizer is not None else None,
        "tokenizer_sha256": file_sha256(path) if path is not None and path.is_file() else None,
        "train_tokenizer": train_tokenizer,
        "heldout": heldout,
        **recipes.as_dict(recipe),
    }


def input_hash(files: list[InputFile]) -> str:
    """Changes when any file is added, taken away or written to."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(repr((file.source, file.relative, file.kind, file.bytes, file.changed_ns)).encode())
    return digest.hexdigest()


def is_complete(scratch: Path, plan: dict[str, Any], out: Path) -> bool:
    """Is this very corpus in `out`, whole? Raises ValueError when what is there was begun with something
    else.
    """
    path = scratch / PLAN
    whole = (out / MANIFEST).exists() or (out / TRAIN / MANIFEST).exists()
    if not path.exists():
        if whole:
            raise ValueError(f"{out} holds a corpus already: give another --out, or remove it")
        write_json(path, plan)
        return False
    old = json.loads(path.read_text())
    begun = any((path.parent / name).exists() for name in _MADE)
    if begun and not (old["complete"] and whole) and old.get("version") != plan["version"]:
        raise ValueError(
            f"{out} holds an unfinished prepare, begun by another version of this program: remove {out}, or "
            "give another --out"
        )
    state = "holds a corpus" if old["complete"] else "holds an unfinished prepare"
    # A setting that came later was what it is by default.
    before = {**recipes.as_dict(Recipe()), **old["settings"]}
    changed = recipes.differences(before, plan["settings"])
    if not changed and old["input"] != plan["input"]:
        changed = ["the source files themselves"]
    if not begun and not old["complete"]:
        write_json(path, plan)  # it failed before it made anything: there is nothing to go on with
        return False
    if changed:
        raise ValueError(
            f"{out} {state} with other settings ({'; '.join(changed)}): go on with those, give another "
            "--out, or remove it"
        )
    return bool(old["complete"]) and whole
