"""The checks of a command before any work is done. Each raises ValueError, in one line."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.opening import naming, open_bytes
from data.prepare import recipe as recipes
from data.prepare.preparation import is_heldout_identity
from data.prepare.readers.text import too_long_file
from data.prepare.recipe import TASK_FIELDS, Recipe
from data.prepare.sources import folders_of_datasets
from data.prepare.sources.decoding import is_transcoded
from data.prepare.sources.looks import HEAD, binary_format
from data.prepare.sources.sources import COMPRESSED, STREAMS, InputFile, TokenIds, matches
from data.tokenizer import loading, training

_MOST_NAMES = 8  # of files, in a message
_WHICH_TOKENIZER = "give either --tokenizer FILE (or bytes) or --train-tokenizer VOCAB_SIZE, and not both"
_OF_ROWS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")  # kinds of files whose rows have fields
_OF_PICTURES = ("image", "webdataset", "parquet", "arrow")  # kinds of files that may hold pictures alone


def check_command(
    tokenizer: Path | str | None, train_tokenizer: int | None, heldout: float, workers: int, recipe: Recipe
) -> None:
    """Raise ValueError where the command contradicts itself, or a value is not possible."""
    recipes.check(recipe)
    if tokenizer is not None and train_tokenizer is not None:
        raise ValueError(_WHICH_TOKENIZER)
    if not 0 <= heldout < 1:
        raise ValueError(f"--heldout {heldout} is not a share: give a number from 0 up to, but not, 1")
    if heldout and recipe.heldout_match:
        raise ValueError(
            f"--heldout {heldout} and --heldout-match: the files that match are held out and no others: "
            "leave out one of the two"
        )
    if train_tokenizer is not None:
        training.check_vocab(recipe.train_kind, train_tokenizer)
    if workers < 0:
        raise ValueError(
            f"--workers {workers} is not a number of processes: give 1 or more, or 0 for one a core"
        )


def token_ids(tokenizer: Path | str | None, recipe: Recipe) -> TokenIds | None:
    """The ids that the given tokenizer has; None where a tokenizer is to be trained."""
    if tokenizer is None:
        return None
    made = loading.given(tokenizer)
    separator = loading.separator_id(made, recipe.separator)
    special = tuple(token.content for token in made.get_added_tokens_decoder().values() if token.special)
    before = loading.template(made, separator)[0] if recipe.task == "chat" else []
    beginning = (made.id_to_token(before[0]) or "") if before else ""
    end = made.id_to_token(separator) or ""
    return TokenIds(loading.vocab_size(made), separator, end, special, beginning)


def check_tokenizer_given(
    files: Sequence[InputFile], tokenizer: Path | str | None, train_tokenizer: int | None
) -> bool:
    """Whether there is a tokenizer. Raises ValueError where there is none and a file may hold a text; a text
    beside the pictures of the others is found when it is read.
    """
    none = tokenizer is None and train_tokenizer is None
    if none and (texts := [file for file in files if file.kind not in _OF_PICTURES]):
        raise ValueError(
            f"{_WHICH_TOKENIZER}: {texts[0].path} is no picture, and pictures alone need none "
            "(--exclude leaves files out)"
        )
    return not none


def check_files(files: Sequence[InputFile], recipe: Recipe) -> None:
    """Raise ValueError where a file cannot be read as it is, or the command does not state what it needs."""
    for file in files:
        if file.kind == "conll" and recipe.task != "tags":
            raise ValueError(
                f"--format conll: {file.path} is read as words with a tag each: give --task tags with it"
            )
        if recipe.task and file.kind not in (*_OF_ROWS, "conll"):
            others = {"tags": ", or CoNLL's columns", "answers": ", or SQuAD's own file"}.get(recipe.task, "")
            raise ValueError(
                f"{file.path} is read as {file.kind}, and --task {recipe.task} takes rows with fields: give "
                "a JSON object a line (or an array of them), Parquet or a saved dataset, each row flat as "
                f"{', '.join(TASK_FIELDS[recipe.task].values())}{others}"
            )
        if file.kind not in STREAMS and file.path.lower().endswith(COMPRESSED):
            raise ValueError(
                f"{file.path} is compressed, and of {file.kind} parts are read by their place: unpack it, or "
                "leave it out with --exclude"
            )
    paths = [file.path if "://" in file.path else os.path.abspath(file.path) for file in files]
    if len(set(paths)) < len(paths):
        again = next(path for path, count in Counter(paths).items() if count > 1)
        raise ValueError(
            f"{again} is in more than one SOURCE, and would be read as often: name it once (weights are for "
            "the config: data.sources[].weight)"
        )
    if recipe.heldout_match and not any(matches(file.relative, recipe.heldout_match) for file in files):
        names = [file.relative for file in files]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        raise ValueError(
            f"--heldout-match {_quoted(recipe.heldout_match)} matches none of: "
            f"{', '.join(names[:_MOST_NAMES])}{more}: it is a glob over a path below its "
            "source, or over the whole name of a file or folder"
        )
    if not recipe.merge_splits:
        named = ((file.path, file.relative, file.kind) for file in files)
        folders_of_datasets.check_splits(named, lambda path: matches(path, recipe.heldout_match))
    texts = [file for file in files if file.kind == "text"]
    if recipe.is_splitting and not texts:
        raise ValueError(
            "--split-lines, --split-at and --split-characters are of text files, and no source is one: its "
            f"kind is {', '.join(sorted({file.kind for file in files}))}"
        )
    for file in files:
        if file.kind == "ids" and file.tokens is None:
            raise ValueError(
                f"{file.path} holds token ids, by its name and its first bytes: give the tokenizer that made "
                "them with --tokenizer FILE, or leave the file out with --exclude"
            )
    if texts and not recipe.is_splitting:
        plain = [file for file in texts if not file.path.lower().endswith(COMPRESSED)]
        for file in sorted(plain, key=lambda file: file.bytes, reverse=True):
            if file.bytes <= recipe.max_document_bytes:
                break
            if not _is_left_out(file):
                raise ValueError(too_long_file(file, f"{file.bytes:,}", recipe))


def _is_left_out(file: InputFile) -> bool:
    """Is the file binary by its first bytes, and so left out, however long it is?"""
    with naming(file.path), open_bytes(file.path) as stream:
        return bool(binary_format(stream.read(HEAD)))


def _quoted(patterns: Sequence[str]) -> str:
    return " ".join(map(repr, patterns))


def held_out_how(files: Sequence[InputFile], heldout: float, recipe: Recipe) -> Recipe:
    """The recipe with `heldout_by` decided: of a single text that is one document, the end is held out.

    Raises ValueError where the files alone decide which side a document is on, and one side is empty; also
    where files are held out by position, and a position in one of them is not known.
    """
    if recipe.heldout_match:
        held = sum(matches(file.relative, recipe.heldout_match) for file in files)
        asked = f"--heldout-match {_quoted(recipe.heldout_match)}"
    elif not heldout:
        return recipe
    elif recipe.heldout_by == "file":
        held = sum(is_heldout_identity(f"{file.source}/{file.relative}".encode(), heldout) for file in files)
        asked = f"--heldout {heldout} by file"
    else:
        recipe = by_position_if_alone(files, heldout, recipe)
        if recipe.heldout_by == "position":
            _check_positions(files, recipe)
        return recipe
    if held in (0, len(files)):
        raise ValueError(
            f"{asked} holds out {held} of {len(files)} files: give one that leaves some on each side"
        )
    return recipe


def by_position_if_alone(files: Sequence[InputFile], heldout: float, recipe: Recipe) -> Recipe:
    """The recipe, with `heldout_by` set to position where the only file is a text that is one document."""
    alone = len(files) == 1 and files[0].kind == "text" and not recipe.is_splitting
    if heldout and alone and recipe.heldout_by == "document" and not recipe.heldout_match:
        return replace(recipe, heldout_by="position")
    return recipe


def _check_positions(files: Sequence[InputFile], recipe: Recipe) -> None:
    for file in files:
        if file.kind == "text" and not recipe.is_splitting:
            continue
        if file.kind not in ("text", "jsonl"):
            raise ValueError(
                f"--heldout-by position is of text and lines of JSON, and {file.path} is {file.kind}: hold "
                "out by document, by file or with --heldout-match"
            )
        if file.path.lower().endswith(COMPRESSED):
            raise ValueError(
                f"--heldout-by position needs the length of {file.path} unpacked, which is not known before "
                "it is read: unpack it, or hold out by document"
            )
        if is_transcoded(file.path, recipe):
            raise ValueError(
                f"--heldout-by position needs the length of {file.path} as UTF-8, which is not known before "
                "it is read: convert it (iconv), or hold out by document"
            )
