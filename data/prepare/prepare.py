"""`prepare`: any sources → a tokenised, indexed, hashed corpus of WebDataset shards.

    plan      which files, cut into units           OUT/.prepare/plan.json
    survey    clean, find duplicates, if asked for  OUT/.prepare/survey/
    tokenizer train or load                         OUT/.prepare/tokenizer.json
    encode    unit by unit into shards              OUT/.prepare/units/
    finish    shards into place, datacard, manifest last

Every step ends in one rename, and what is there already is not done again: the same command after a kill
goes on. Without its manifest a folder is not a corpus, so a killed run never leaves one that looks whole.

Memory does not grow with the input: a worker holds one batch of documents (each at most
`max_document_bytes`) and the index columns of the shard it writes; spools, signatures and shards are
streams on disk. The main process holds the list of files, 25 bytes a document while it sorts exact
duplicates, and 30 for near ones.
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from common.files import write_atomically
from data.corpus.manifest import MANIFEST, read_manifest
from data.prepare import preconditions
from data.prepare.cleaning import clean
from data.prepare.cleaning.decontaminate import write_evaluation_runs
from data.prepare.encode import cleaned_documents, encode_unit
from data.prepare.finish import finish
from data.prepare.job import HELDOUT, TRAIN, Job, is_heldout, write_json
from data.prepare.planfile import (
    PLAN,
    VERSION,
    begin,
    check_unchanged,
    given_up,
    input_hash,
    is_finished,
    is_older,
    lock,
    settings_of,
    spool_stdin,
)
from data.prepare.recipe import Recipe
from data.prepare.report.progress import Progress
from data.prepare.sources import sources as inputs
from data.prepare.survey import find_duplicates, survey_unit
from data.prepare.units import Unit, plan_units
from data.prepare.workers import run_units, warm_up
from data.tokenizer import tokenizer as tokenizers

SCRATCH = ".prepare"
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
    """What `prepare` did. `counts`: step → (documents, characters), for "read" and
    `data.prepare.report.steps`' others; `files`: kind → how many were read; `round_trip`: of how many
    documents tried (the second) the tokenizer gave the very text back (the first). `was_complete`: there was
    nothing to do, for the corpus was there; `by_another_version` of this program, which may read the sources
    otherwise.
    """

    train: Side
    heldout: Side | None
    vocab: int
    counts: dict[str, tuple[int, int]]
    examples: dict[str, list[str]]
    files: dict[str, int]
    heldout_by: str
    round_trip: tuple[int, int]
    was_complete: bool = False
    by_another_version: bool = False


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
    preconditions.check_command(tokenizer, train_tokenizer, heldout, workers, recipe)
    tokens = preconditions.token_ids(tokenizer, recipe)
    workers = workers or len(os.sched_getaffinity(0))
    out = Path(out)
    scratch = out / SCRATCH
    with ExitStack() as stack:
        stack.enter_context(lock(out, scratch))
        stack.enter_context(_room(out))
        bar = stack.enter_context(Progress(progress))
        stdin_file = spool_stdin(scratch) if inputs.STANDARD_INPUT in sources else ""
        files = inputs.expand(sources, recipe, stdin_file, str(out))
        files = [replace(file, tokens=tokens) for file in files]
        # Before anything is refused that an earlier version took.
        decided = preconditions.by_position_if_alone(files, heldout, recipe)
        asked = [
            settings_of(sources, tokenizer, train_tokenizer, heldout, each) for each in (recipe, decided)
        ]
        if is_finished(scratch, out, asked, files, recipe):
            _clear(scratch)
            return replace(_report(out, files), was_complete=True, by_another_version=is_older(scratch))
        preconditions.check_files(files, recipe)
        recipe = preconditions.held_out_how(files, heldout, recipe)
        settings = settings_of(sources, tokenizer, train_tokenizer, heldout, recipe)
        plan = {"version": VERSION, "settings": settings, "input": input_hash(files), "complete": False}
        begin(scratch, plan, out)
        stack.enter_context(given_up(scratch))
        total = sum(file.bytes for file in files)
        units = plan_units(files, _unit_bytes(total, recipe), recipe)
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
        check_unchanged(files, out)
        finish(job, units, out, settings, split=bool(heldout or recipe.heldout_match))
        write_json(scratch / PLAN, {**plan, "complete": True})
        _clear(scratch)
    return _report(out, files)


def _clear(scratch: Path) -> None:
    """Removes what a finished corpus needs no more; a kill may have come before that."""
    for name in ("units", "survey"):
        shutil.rmtree(scratch / name, ignore_errors=True)


@contextmanager
def _room(out: Path) -> Iterator[None]:
    """Says of a full disk which one it is, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RuntimeError(
            f"{out}: {os.strerror(error.errno)}: make room and run the same command again, which keeps "
            "the shards that are finished, or give another --out"
        ) from None


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
    else:
        assert given is not None
        made = tokenizers.given(given)
    if job.recipe.template == "drop":
        made = tokenizers.without_template(made)
    tokenizers.separator_id(made, job.recipe.separator)
    raw = made.to_str(pretty=True).encode()
    write_atomically(job.tokenizer, raw, draft=job.tokenizer.with_name("tokenizer.json.tmp"))


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


def _report(out: Path, files: list[inputs.InputFile]) -> PrepareReport:
    split = (out / TRAIN / MANIFEST).exists()
    sides = [out / TRAIN, out / HELDOUT] if split else [out]
    manifest = read_manifest(sides[0])
    return PrepareReport(
        train=_side(sides[0]),
        heldout=_side(sides[1]) if split else None,
        vocab=manifest.tokenizer.vocab,
        counts={step: (count[0], count[1]) for step, count in manifest.prepare["counts"].items()},
        examples=manifest.prepare["examples"],
        files=dict(Counter(file.kind for file in files)),
        heldout_by=manifest.prepare["settings"]["heldout_by"],
        round_trip=_round_trip(sides),
    )


def _round_trip(sides: list[Path]) -> tuple[int, int]:
    counts: Counter[str] = Counter()
    for side in sides:
        for came_back, amounts in read_manifest(side).prepare["profile"]["round_trip"].items():
            counts[came_back] += amounts[0]
    return counts["same"], counts.total()


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
