"""The end of `prepare`: move the shards into place, write the data card, then the manifests."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.files import write_durably
from data.corpus.columns import Columns, merged, recast
from data.corpus.index import read_index, write_array
from data.corpus.listing.catalogue import close_corpus
from data.corpus.manifest import (
    INDEX_ROWS,
    TEMPLATE,
    TEMPLATE_FILE,
    Manifest,
    ShardEntry,
    TokenizerEntry,
    file_sha256,
    token_dtype,
)
from data.prepare.preparation import HELDOUT, TRAIN, NothingLeft, Preparation
from data.prepare.report.composition import Profile
from data.prepare.report.datacard import write_datacard
from data.prepare.report.line_numbers import number_lines_by_file
from data.prepare.report.step_names import in_words
from data.prepare.survey import tally_of
from data.prepare.tally import Tally
from data.prepare.tasks.templates import BUILT
from data.prepare.units import Unit
from data.tokenizer import folders, loading


def finish(
    preparation: Preparation, units: list[Unit], out: Path, settings: dict[str, Any], split: bool
) -> None:
    """Move the shards into place under their final numbers; close each side with its manifest, train last.

    preparation: the preparation; the records of all units are there.
    units: all units, in order.
    out: the folder of the corpus.
    settings: the command's settings, for the manifest and the data card.
    split: into the sides OUT/train and OUT/heldout, or one side in OUT?

    Raises NothingLeft where a side has no document, before any shard is moved.
    """
    tally = tally_of(preparation, units)
    sides = (HELDOUT, TRAIN) if split else (TRAIN,)
    profiles = {side: Profile() for side in sides}
    numbers: dict[str, int] = {}
    kinds: dict[str, set[Columns]] = {side: set() for side in sides}
    # One record at a time, and again to place its shards: thousands of them may name a thousand classes each.
    for segment in _segments(preparation, units):
        tally.merge(segment["tally"])
        _add_class_numbers(numbers, segment)
        for side in sides:
            profiles[side].merge(segment["profiles"][side])
            if side in segment["shards"]:
                kinds[side].add(replace(_columns_of(segment, side), classes=()))
    number_lines_by_file(tally, units)
    # Of both sides together, so that a label means the same class on each.
    further = merged((kind for each in kinds.values() for kind in each), numbers)
    for side in sides:
        if not kinds[side]:
            raise NothingLeft(_nothing_left(side, tally, preparation.recipe.text_field))
    tokenizer = _tokenizer_entry(preparation)
    manifests: dict[Path, Manifest] = {}
    for side in sides:
        folder = out / side if split else out
        about = {"settings": settings, "side": side, **tally.as_dict()}
        about["profile"] = profiles[side].as_dict()
        folder.mkdir(exist_ok=True)
        write_durably(folder / tokenizer.file, preparation.tokenizer.read_bytes())
        for name, content in folders.files_beside(Path(str(settings["tokenizer"]))).items():
            write_durably(folder / name, content)
        if preparation.recipe.task == "chat":
            template = BUILT.get(preparation.recipe.chat_template, preparation.recipe.chat_template)
            about[TEMPLATE] = template
            write_durably(folder / TEMPLATE_FILE, template.encode())
        manifests[folder] = Manifest(
            tokenizer=tokenizer,
            dtype=token_dtype(tokenizer.vocab),
            block_documents=preparation.recipe.block_documents,
            shards=_placed(preparation, units, side, further, folder),
            prepare=about,
            sources=[
                {"name": name, "documents": n} for name, (n, _, _) in about["profile"]["source"].items()
            ],
            columns=further.names,
            classes=further.classes,
            media=further.media,
        )
    write_datacard(out, settings, tally, {folder.name: manifest for folder, manifest in manifests.items()})
    for folder, manifest in manifests.items():
        close_corpus(folder, manifest)


def _nothing_left(side: str, tally: Tally, text_field: str) -> str:
    removed = [
        f"{in_words(step, text_field).removeprefix('left out: ')} {count[0]}"
        + "".join(f", as in {where}" for where in tally.examples.get(step, [])[:1])
        for step, count in sorted(tally.counts.items())
        if step.startswith("removed.")
    ]
    why = f" ({'; '.join(removed)})" if removed else ""
    if side == HELDOUT and tally.documents("read"):
        return (
            f"no document of {tally.documents('read')} is held out{why}: raise --heldout, hold out the end "
            "of each file with --heldout-by position, or name files with --heldout-match"
        )
    read = tally.documents("read")
    return f"no document is left of {read} that were read{why}: check the sources and the steps"


def _columns_of(segment: Mapping[str, Any], side: str) -> Columns:
    """The columns of a segment's shard."""
    recorded = segment["columns"][side]
    return Columns(**{name: tuple(values) for name, values in recorded.items()})


def _segments(preparation: Preparation, units: list[Unit]) -> Iterator[dict[str, Any]]:
    """The records of all segments, in the order of the corpus."""
    for unit in units:
        yield from json.loads(preparation.record(unit, "units").read_bytes())["segments"]


def _add_class_numbers(numbers: dict[str, int], segment: Mapping[str, Any]) -> None:
    """Add a segment's classes, and the number that the sources give to each: −1 where they give none, or
    different ones.
    """
    for classes in segment["classes"].values():
        for name, number in classes.items():
            if numbers.setdefault(name, number) != number:
                numbers[name] = -1


def _placed(
    preparation: Preparation, units: list[Unit], side: str, further: Columns, folder: Path
) -> tuple[ShardEntry, ...]:
    """Move all shards of a side and their indexes into `folder`; return their new entries, in order."""
    shards = (
        (ShardEntry(**segment["shards"][side]), _columns_of(segment, side))
        for segment in _segments(preparation, units)
        if side in segment["shards"]
    )
    unfinished = preparation.scratch / "units"
    return tuple(_place(unfinished, *shard, further, folder, n) for n, shard in enumerate(shards))


def _place(
    units: Path, entry: ShardEntry, columns: Columns, further: Columns, folder: Path, number: int
) -> ShardEntry:
    """Move a shard and its index from `units` into `folder`, unless a killed attempt has; return the new
    entry. The index gets the columns of the corpus, `further`, where its own, `columns`, are others.
    """
    placed = replace(entry, file=f"shard-{number:06d}.tar")
    if columns == further:
        _move(units / entry.index_file, folder / placed.index_file)
    else:  # the unit's own index stays until the end, so that a killed attempt can do this again
        index = read_index(units / entry.index_file, entry, INDEX_ROWS + len(columns.names))
        written = write_array(folder / placed.index_file, recast(index, columns, further, INDEX_ROWS))
        placed = replace(placed, index_xxh3=written)
    _move(units / entry.file, folder / placed.file)
    return placed


def _move(source: Path, target: Path) -> None:
    """Rename a file, unless a killed attempt has."""
    if source.exists():
        os.replace(source, target)
    elif not target.exists():
        raise RuntimeError(f"{target} is gone: remove {target.parent} and run prepare again")


def _tokenizer_entry(preparation: Preparation) -> TokenizerEntry:
    tokenizer = loading.load(preparation.tokenizer)
    return TokenizerEntry(
        file="tokenizer.json",
        sha256=file_sha256(preparation.tokenizer),
        vocab=loading.vocab_size(tokenizer),
        eos=loading.separator_id(tokenizer, preparation.recipe.separator),
    )
