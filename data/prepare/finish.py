"""The end of `prepare`: shards into place under their final numbers, the data card, the manifests last."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.files import write_durably
from data.corpus.manifest import (
    Manifest,
    ShardEntry,
    TokenizerEntry,
    file_sha256,
    index_name,
    token_dtype,
    write_manifest,
)
from data.prepare.encode import encoder
from data.prepare.job import HELDOUT, TRAIN, Job
from data.prepare.planfile import NothingLeft
from data.prepare.report.composition import Profile
from data.prepare.report.datacard import write_datacard
from data.prepare.report.steps import count_lines, in_words
from data.prepare.report.tally import Tally
from data.prepare.survey import tally_of
from data.prepare.units import Unit
from data.tokenizer import tokenizer as tokenizers


def finish(job: Job, units: list[Unit], out: Path, settings: dict[str, Any], split: bool) -> None:
    """Moves the shards into place under their final numbers and closes each side with its manifest, train
    last. Raises `NothingLeft` where a side has no document.
    """
    records = [json.loads(job.record(unit, "units").read_text()) for unit in units]
    segments = [segment for record in records for segment in record["segments"]]
    tally = tally_of(job, units)
    for segment in segments:
        tally.merge(segment["tally"])
    count_lines(tally, units)
    sides = {
        side: [ShardEntry(**segment["shards"][side]) for segment in segments if side in segment["shards"]]
        for side in ((HELDOUT, TRAIN) if split else (TRAIN,))
    }
    for side, shards in sides.items():  # before any shard is moved
        if not shards:
            raise NothingLeft(_nothing_left(side, tally, job.recipe.text_field))
    manifests: dict[Path, Manifest] = {}
    for side, shards in sides.items():
        folder = out / side if split else out
        profile = Profile()
        for segment in segments:
            profile.merge(segment["profiles"][side])
        folder.mkdir(exist_ok=True)
        placed = [_place(job, entry, folder, number) for number, entry in enumerate(shards)]
        manifests[folder] = _manifest(job, folder, placed, settings, side, tally, profile)
    write_datacard(out, settings, tally, {folder.name: manifest for folder, manifest in manifests.items()})
    for folder, manifest in manifests.items():
        write_manifest(folder, manifest)


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


def _place(job: Job, entry: ShardEntry, folder: Path, number: int) -> ShardEntry:
    """Renames a shard and its index; done already where a killed attempt got to."""
    placed = replace(entry, file=f"shard-{number:06d}.tar")
    for old, new in ((entry.file, placed.file), (index_name(entry.file), index_name(placed.file))):
        source = job.scratch / "units" / old
        if source.exists():
            os.replace(source, folder / new)
        elif not (folder / new).exists():
            raise RuntimeError(f"{folder / new} is gone: remove {folder} and run prepare again")
    return placed


def _manifest(
    job: Job,
    folder: Path,
    shards: list[ShardEntry],
    settings: dict[str, Any],
    side: str,
    tally: Tally,
    profile: Profile,
) -> Manifest:
    write_durably(folder / "tokenizer.json", job.tokenizer.read_bytes())
    tokenizer = encoder(job.tokenizer, job.recipe.separator).tokenizer
    vocab = tokenizers.vocab_size(tokenizer)
    separator = tokenizers.separator_id(tokenizer, job.recipe.separator)
    return Manifest(
        tokenizer=TokenizerEntry("tokenizer.json", file_sha256(job.tokenizer), vocab, separator),
        dtype=token_dtype(vocab),
        block_documents=job.recipe.block_documents,
        shards=tuple(shards),
        prepare={"settings": settings, "side": side, **tally.as_dict(), "profile": profile.as_dict()},
        sources=[{"name": name, "documents": n} for name, (n, _, _) in profile.as_dict()["source"].items()],
    )
