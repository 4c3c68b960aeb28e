"""`prepare`: any sources → a tokenised, indexed, hashed corpus of WebDataset shards.

    begin      list the files, record the command    OUT/.prepare/plan.json
    cut        the files into units
    survey     clean, find duplicates, if needed     OUT/.prepare/survey/
    tokenizer  train or load                         OUT/.prepare/tokenizer.json
    encode     unit by unit into shards              OUT/.prepare/units/
    finish     shards into place, data card, manifests last

Every phase ends in one rename, and what is there already is not done again: the same command after a kill
goes on. Without its manifest a folder is no corpus, so a killed `prepare` never leaves one that looks whole.

Memory does not grow with the input: a worker holds one batch of documents (each at most
`max_document_bytes`; their pictures take 8 MiB together, or one does that is larger) and the index columns of
the shard it writes, or the keys of a share of documents that it compares with others; spools, signatures and
shards are streams on disk. The main process holds the list of files and of units.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from common.files import write_atomically
from data.prepare import preconditions
from data.prepare.cleaning import clean
from data.prepare.cleaning.decontaminate import write_evaluation_runs
from data.prepare.command_record import (
    COMMAND,
    VERSION,
    begin,
    check_unchanged,
    given_up,
    hold_folder,
    input_hash,
    is_finished,
    is_older,
    settings_of,
    spool_stdin,
)
from data.prepare.duplicates.find import find
from data.prepare.embedded import names
from data.prepare.encode import cleaned_documents, encode_unit
from data.prepare.engines.chosen import check_engine, started
from data.prepare.finish import finish
from data.prepare.preparation import Preparation, clear_drafts, is_heldout, write_json
from data.prepare.readers.tag_names import with_tag_names
from data.prepare.recipe import Recipe, for_task
from data.prepare.report.outcome import PrepareReport, report_of
from data.prepare.report.progress import Progress
from data.prepare.sources import sources as inputs
from data.prepare.survey import survey_unit
from data.prepare.tasks.templates import with_template
from data.prepare.units import Advance, Run, Unit, cut_into_units
from data.tokenizer import encoder, loading, training
from data.tokenizer.folders import tokenizer_file

SCRATCH = ".prepare"
_EMBEDDED = "embedded"
_SMALLEST_UNIT_BYTES = 1 << 20
_UNITS_OF_A_SMALL_CORPUS = 32


def prepare(
    sources: list[str],
    out: Path,
    *,
    tokenizer: Path | str | None = None,
    train_tokenizer: int | None = None,
    heldout: float = 0.0,
    workers: int = 0,
    on: str = "local",
    recipe: Recipe | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Make a corpus in `out`, or in `out`/train and `out`/heldout where some of it is held out.

    sources: folders, files, globs, brace ranges, `@list`, URLs, "-" for standard input; or one embedded
        corpus, "embedded:NAME", whose settings take the place of those that are not given.
    out: the folder of the corpus.
    tokenizer: a tokenizer.json, a Hugging Face folder, or "bytes"; neither it nor `train_tokenizer` where all
        is pictures alone.
    train_tokenizer: instead of `tokenizer`, train one of so many tokens on the training side.
    heldout: share that is held out, in [0, 1).
    workers: number of processes; 0 for one each core. The output is the same bytes for any number.
    on: what runs them: "local", this machine; "ray", a Ray that is started on it; "ray:HOST:PORT", a Ray
        cluster of which this machine is a node. The output is the same bytes on any.
    recipe: all other settings.
    progress: show the progress bar?

    Raises ValueError, one line, for what the caller must change; RuntimeError for input that is damaged.
    """
    made = names.settings(sources, names.Asked(recipe or Recipe(), tokenizer, train_tokenizer, heldout))
    recipe, heldout = with_template(for_task(made.recipe)), made.heldout
    tokenizer, train_tokenizer = tokenizer_file(made.tokenizer), made.train_tokenizer
    preconditions.check_command(tokenizer, train_tokenizer, heldout, workers, recipe)
    tokens = preconditions.token_ids(tokenizer, recipe)
    check_engine(on)
    out, scratch = Path(out), Path(out) / SCRATCH
    with ExitStack() as stack:
        stack.enter_context(hold_folder(out, scratch))
        stack.enter_context(_naming_full_disk(out))
        bar = stack.enter_context(Progress(progress))
        stdin_file = spool_stdin(scratch) if inputs.STANDARD_INPUT in sources else ""
        if made.write:
            files = inputs.expand([_written(made.write, scratch / _EMBEDDED)], recipe)
        else:
            files = inputs.expand(sources, recipe, stdin_file, str(out))
        files = [replace(file, tokens=tokens) for file in files]
        recipe = with_tag_names(files, recipe)
        has_tokenizer = preconditions.check_tokenizer_given(files, tokenizer, train_tokenizer)
        # Look for a finished corpus before anything is refused: an earlier version may have taken it.
        decided = preconditions.by_position_if_alone(files, heldout, recipe)
        asked = [
            settings_of(sources, tokenizer, train_tokenizer, heldout, each) for each in (recipe, decided)
        ]
        if is_finished(scratch, out, asked, files, recipe):
            _clear(scratch)
            return replace(report_of(out, files), was_complete=True, by_another_version=is_older(scratch))
        preconditions.check_files(files, recipe)
        recipe = preconditions.held_out_how(files, heldout, recipe)
        settings = settings_of(sources, tokenizer, train_tokenizer, heldout, recipe)
        command = {"version": VERSION, "settings": settings, "input": input_hash(files), "complete": False}
        begin(scratch, command, out)
        stack.enter_context(given_up(scratch))
        units = cut_into_units(files, _unit_bytes(files, recipe), recipe)
        surveyed = _needs_survey(recipe, train_tokenizer, scratch)
        preparation = Preparation(scratch.absolute(), recipe, heldout, surveyed, not has_tokenizer)
        clear_drafts(scratch)
        run = stack.enter_context(started(on, workers, len(units), scratch))
        _survey(preparation, units, run, bar)
        _make_tokenizer(preparation, units, tokenizer, train_tokenizer, bar)
        (scratch / "units").mkdir(exist_ok=True)
        bar.phase("tokenising", sum(unit.bytes for unit in units))
        run(encode_unit, preparation, units, bar.advance)
        check_unchanged(files, out)
        finish(preparation, units, out, settings, split=bool(heldout or recipe.heldout_match))
        write_json(scratch / COMMAND, {**command, "complete": True})
        _clear(scratch)
    return report_of(out, files)


def _survey(preparation: Preparation, units: list[Unit], run: Run, bar: Progress) -> None:
    """What comes before a document is tokenised: the evaluation texts, and the first pass, if needed."""
    if preparation.recipe.decontaminate and not preparation.evaluation.exists():
        write_evaluation_runs(preparation.recipe, preparation.evaluation)
    if preparation.surveyed:
        (preparation.scratch / "survey").mkdir(exist_ok=True)
        bar.phase("cleaning", sum(unit.bytes for unit in units))
        run(survey_unit, preparation, units, bar.advance)
        find(preparation, units, run)


def _clear(scratch: Path) -> None:
    """Remove what a finished corpus does not need; a killed command may have left it."""
    for name in ("units", "survey", _EMBEDDED):
        shutil.rmtree(scratch / name, ignore_errors=True)


def _written(write: Callable[[Path], None], folder: Path) -> str:
    """Write an embedded corpus's sources into a new folder; return it. The files have a fixed time, which is
    part of `input_hash`: a killed command that is given again goes on.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
    return str(folder)


@contextmanager
def _naming_full_disk(out: Path) -> Iterator[None]:
    """RuntimeError that names `out` and the remedy, where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RuntimeError(
            f"{out}: {os.strerror(error.errno)}: make room and run the same command again, which keeps "
            "the shards that are finished, or give another --out"
        ) from None


def _unit_bytes(files: list[inputs.InputFile], recipe: Recipe) -> int:
    """The size of a unit: a full shard; less for a small corpus, so that many workers have some to do."""
    total = sum(file.bytes for file in files)
    return min(recipe.shard_bytes, max(_SMALLEST_UNIT_BYTES, total // _UNITS_OF_A_SMALL_CORPUS))


def _needs_survey(recipe: Recipe, train_tokenizer: int | None, scratch: Path) -> bool:
    """Is a first pass over the documents needed? Duplicates are found over the whole corpus, and a tokenizer
    is trained on text that was cleaned on all cores.
    """
    cleans = bool(clean.cleaning_steps(recipe, scratch))
    return bool(recipe.deduplicate) or (cleans and train_tokenizer is not None)


def _make_tokenizer(
    preparation: Preparation, units: list[Unit], given: Path | str | None, vocab: int | None, bar: Progress
) -> None:
    """Train or load the corpus's tokenizer, unless a killed attempt has."""
    if preparation.tokenizer.exists():
        return
    if vocab is not None:
        limit = preparation.recipe.train_bytes
        bar.phase("training tokenizer", min(limit, sum(unit.bytes for unit in units)))
        made = training.train(
            preparation.recipe.train_kind, _training_texts(preparation, units, bar.advance), vocab
        )
    else:
        made = loading.given("bytes" if given is None else given)  # pictures alone have no ids
    if preparation.recipe.template == "drop":
        made = loading.without_template(made)
    loading.separator_id(made, preparation.recipe.separator)
    raw = made.to_str(pretty=True).encode()
    write_atomically(preparation.tokenizer, raw, draft=preparation.tokenizer.with_name("tokenizer.json.tmp"))


def _training_texts(preparation: Preparation, units: list[Unit], advance: Advance) -> Iterator[str]:
    """Yield text of the training side from the beginning of every unit, about `train_bytes` in all.

    Sizes are counted in characters, which for this purpose stand for bytes.
    """
    share = min(1.0, preparation.recipe.train_bytes / max(1, sum(unit.bytes for unit in units)))
    some = False
    for unit in units:
        left = unit.bytes * share
        for document in cleaned_documents(preparation, unit):
            if left <= 0:
                break
            if document.ids is None and not is_heldout(document, preparation):
                some = True
                advance(len(document.text))
                for text in (document.text, document.second or ""):
                    left -= len(text)
                    yield from encoder.parts(text)
    if not some:
        raise ValueError("there is no text to train a tokenizer on: give one with --tokenizer")
