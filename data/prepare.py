"""`prepare`: any sources → a tokenised, indexed, hashed corpus of WebDataset shards.

    plan      which files, cut into units           OUT/.prepare/plan.json
    survey    clean, find duplicates, if asked for  OUT/.prepare/survey/
    tokenizer train or load                         OUT/.prepare/tokenizer.json
    encode    unit by unit into shards              OUT/.prepare/units/
    finish    shards into place, datacard, manifest last

Every step ends in one rename, and what is there already is not done again: the same command after a kill
goes on. Without its manifest a folder is not a corpus, so a killed run never leaves one that looks whole.
"""

import fcntl
import filecmp
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import clean
from data import recipe as recipes
from data import sources as inputs
from data import tokenizer as tokenizers
from data.decontaminate import write_evaluation_runs
from data.encode import cleaned_documents, encode_unit
from data.finish import finish
from data.job import HELDOUT, TRAIN, Job, is_heldout, sync_file, write_json
from data.manifest import (
    MANIFEST,
    file_sha256,
    read_manifest,
)
from data.progress import Progress
from data.recipe import Recipe
from data.sources import InputFile, Unit
from data.survey import find_duplicates, survey_unit
from data.workers import run_units, warm_up

SCRATCH = ".prepare"
BUILT = {"bytes": tokenizers.utf8_bytes}
_SMALLEST_UNIT_BYTES = 1 << 20
_UNITS_OF_A_SMALL_CORPUS = 32


@dataclass(frozen=True)
class Side:
    """One corpus that was written: its folder and what is in it."""

    path: Path
    shards: int
    documents: int
    tokens: int
    text_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did. `counts`: step → (documents, bytes): "read", "removed.…" and "changed.…"."""

    train: Side
    heldout: Side | None
    vocab: int
    counts: dict[str, tuple[int, int]]
    examples: dict[str, list[str]]
    was_complete: bool


def prepare(
    sources: list[str],
    out: Path,
    *,
    tokenizer: Path | str | None = None,
    train_tokenizer: int | None = None,
    heldout: float = 0.0,
    workers: int = 0,
    recipe: Recipe | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Makes a corpus in `out`, or `out`/train and `out`/heldout when some of it is held out.

    `sources`: folders, files, globs, brace ranges, `@list`, URLs, "-". `tokenizer`: a tokenizer.json, or
    "bytes"; else one of `train_tokenizer` tokens is trained on the training side. `heldout`: share in [0,
    1). `workers`: processes; 0 for one a core. The same input and settings give the same bytes for any
    number of them.

    Raises ValueError, one line, for what the caller must change; RuntimeError for input that is damaged.
    """
    recipe = recipe or Recipe()
    _check(tokenizer, train_tokenizer, heldout, workers, recipe)
    workers = workers or len(os.sched_getaffinity(0))
    out = Path(out)
    scratch = out / SCRATCH
    with ExitStack() as stack:
        stack.enter_context(_lock(out, scratch))
        bar = stack.enter_context(Progress(progress))
        stdin_file = _spool_stdin(scratch) if inputs.STANDARD_INPUT in sources else ""
        files = inputs.expand(sources, recipe, stdin_file, str(out))
        settings = _settings(sources, tokenizer, train_tokenizer, heldout, recipe)
        plan = {"settings": settings, "input": _input_hash(files), "complete": False}
        if _is_complete(scratch, plan, out):
            return _report(out, was_complete=True)
        total = sum(file.bytes for file in files)
        units = inputs.plan_units(files, _unit_bytes(total, recipe))
        job = Job(scratch, recipe, heldout, _needs_survey(recipe, train_tokenizer, scratch))
        warm_up(min(workers, len(units)))
        if recipe.decontaminate and not job.evaluation.exists():
            write_evaluation_runs(recipe, job.evaluation)
        if job.surveyed:
            (scratch / "survey").mkdir(exist_ok=True)
            bar.phase("cleaning", sum(unit.bytes for unit in units))
            run_units(survey_unit, job, units, workers, bar.advance)
            find_duplicates(job, units)
        if not job.tokenizer.exists():
            _make_tokenizer(job, units, tokenizer, train_tokenizer, bar)
        (scratch / "units").mkdir(exist_ok=True)
        bar.phase("tokenising", sum(unit.bytes for unit in units))
        run_units(encode_unit, job, units, workers, bar.advance)
        finish(job, units, out, settings, split=bool(heldout or recipe.heldout_match))
        write_json(scratch / "plan.json", {**plan, "complete": True})
        for name in ("units", "survey"):
            shutil.rmtree(scratch / name, ignore_errors=True)
    return _report(out, was_complete=False)


def _check(
    tokenizer: Path | str | None, train_tokenizer: int | None, heldout: float, workers: int, recipe: Recipe
) -> None:
    recipes.check(recipe)
    if (tokenizer is None) == (train_tokenizer is None):
        raise ValueError(
            "give either --tokenizer FILE (or bytes) or --train-tokenizer VOCAB_SIZE, and not both"
        )
    if not 0 <= heldout < 1:
        raise ValueError(f"heldout={heldout} is not a share: give a number from 0 up to, but not, 1")
    if workers < 0:
        raise ValueError(
            f"workers={workers} is not a number of processes: give 1 or more, or 0 for one a core"
        )


@contextmanager
def _lock(out: Path, scratch: Path) -> Iterator[None]:
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
        yield


def _spool_stdin(scratch: Path) -> str:
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


def _settings(
    sources: list[str],
    tokenizer: Path | str | None,
    train_tokenizer: int | None,
    heldout: float,
    recipe: Recipe,
) -> dict[str, Any]:
    """All that decides what comes out; how many workers do it is not among it."""
    path = Path(tokenizer) if tokenizer is not None and tokenizer not in BUILT else None
    return {
        "sources": list(sources),
        "tokenizer": str(tokenizer) if tokenizer is not None else None,
        "tokenizer_sha256": file_sha256(path) if path is not None and path.is_file() else None,
        "train_tokenizer": train_tokenizer,
        "heldout": heldout,
        **recipes.as_dict(recipe),
    }


def _input_hash(files: list[InputFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(repr((file.source, file.relative, file.kind, file.bytes, file.changed_ns)).encode())
    return digest.hexdigest()


def _is_complete(scratch: Path, plan: dict[str, Any], out: Path) -> bool:
    """Is this very corpus in `out`, whole? Raises ValueError when what is there was begun with something
    else.
    """
    path = scratch / "plan.json"
    whole = (out / MANIFEST).exists() or (out / TRAIN / MANIFEST).exists()
    if not path.exists():
        if whole:
            raise ValueError(f"{out} holds a corpus already: give another --out, or remove it")
        write_json(path, plan)
        return False
    old = json.loads(path.read_text())
    state = "holds a corpus" if old["complete"] else "holds an unfinished prepare"
    changed = recipes.differences(old["settings"], plan["settings"])
    if not changed and old["input"] != plan["input"]:
        changed = ["the source files themselves"]
    if changed:
        raise ValueError(
            f"{out} {state} with other settings ({'; '.join(changed)}): go on with those, give another "
            "--out, or remove it"
        )
    return bool(old["complete"]) and whole


def _unit_bytes(total: int, recipe: Recipe) -> int:
    """Small corpora too are cut finely enough for many workers; large ones into full shards."""
    return min(recipe.shard_bytes, max(_SMALLEST_UNIT_BYTES, total // _UNITS_OF_A_SMALL_CORPUS))


def _needs_survey(recipe: Recipe, train_tokenizer: int | None, scratch: Path) -> bool:
    """Duplicates are found over the whole corpus; and a tokenizer is trained on text that was cleaned on
    all cores.
    """
    cleans = bool(clean.steps(recipe, scratch))
    return bool(recipe.deduplicate) or (cleans and train_tokenizer is not None)


def _make_tokenizer(
    job: Job, units: list[Unit], given: Path | str | None, vocab: int | None, bar: Progress
) -> None:
    if vocab is not None:
        limit = job.recipe.train_bytes
        bar.phase("training tokenizer", min(limit, sum(unit.bytes for unit in units)))
        made = tokenizers.train(job.recipe.train_kind, _training_texts(job, units, bar.advance), vocab)
    elif given in BUILT:
        made = BUILT[str(given)]()
    else:
        made = tokenizers.load(Path(str(given)))
    tokenizers.separator_id(made, job.recipe.separator)
    temporary = job.tokenizer.with_name("tokenizer.json.tmp")
    made.save(str(temporary))
    sync_file(temporary)
    os.replace(temporary, job.tokenizer)


def _training_texts(job: Job, units: list[Unit], report: Callable[[int], None]) -> Iterator[str]:
    """Text of the training side, from the beginning of every unit, `train_bytes` in all."""
    share = min(1.0, job.recipe.train_bytes / max(1, sum(unit.bytes for unit in units)))
    some = False
    for unit in units:
        left = unit.bytes * share
        for document in cleaned_documents(job, unit):
            if left <= 0:
                break
            if document.ids is None and not is_heldout(document, job):
                some = True
                report(len(document.text))
                left -= len(document.text)
                yield from tokenizers.pieces(document.text)
    if not some:
        raise ValueError("there is no text to train a tokenizer on: give one with --tokenizer")


def _report(out: Path, was_complete: bool) -> PrepareReport:
    split = (out / TRAIN / MANIFEST).exists()
    manifest = read_manifest(out / TRAIN if split else out)
    return PrepareReport(
        train=_side(out / TRAIN if split else out),
        heldout=_side(out / HELDOUT) if split else None,
        vocab=manifest.tokenizer.vocab,
        counts={step: (count[0], count[1]) for step, count in manifest.prepare["counts"].items()},
        examples=manifest.prepare["examples"],
        was_complete=was_complete,
    )


def _side(folder: Path) -> Side:
    manifest = read_manifest(folder)
    return Side(
        path=folder,
        shards=len(manifest.shards),
        documents=manifest.documents,
        tokens=manifest.tokens,
        text_bytes=manifest.text_bytes,
        fingerprint=manifest.fingerprint,
    )
