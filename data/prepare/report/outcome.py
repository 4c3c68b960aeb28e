"""What `prepare` returns: the corpus that it made or found."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data.corpus.manifest import MANIFEST, Manifest, read_manifest
from data.prepare.sources.sources import InputFile


@dataclass(frozen=True)
class Side:
    """One side of the corpus as it was written.

    path: its folder.
    shards, documents: how many.
    tokens: token ids, separators not counted.
    text_bytes: UTF-8 bytes of the documents' text.
    fingerprint: the manifest's.
    """

    path: Path
    shards: int
    documents: int
    tokens: int
    text_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    train: the corpus, or its training side.
    heldout: the held-out side; None where nothing is held out.
    vocab: tokens in the tokenizer's vocabulary.
    counts: step → (documents, size): "read", and what was left out, changed and noted. The size is in the
        unit `data.prepare.report.step_names.unit_of(step)`.
    examples: step → the first few places where it happened.
    files: kind of file → number of files read.
    heldout_by: "document", "file" or "position".
    round_trip: (documents whose ids the tokenizer decoded to the very text, documents tried).
    tags: the names of the tags of words, by their numbers; empty where there are none.
    was_complete: the corpus was there already, and nothing was done.
    by_another_version: another version of this program made it, which may read the sources in another way.
    """

    train: Side
    heldout: Side | None
    vocab: int
    counts: dict[str, tuple[int, int]]
    examples: dict[str, list[str]]
    files: dict[str, int]
    heldout_by: str
    round_trip: tuple[int, int]
    tags: list[str]
    was_complete: bool = False
    by_another_version: bool = False


def report_of(out: Path, files: list[InputFile]) -> PrepareReport:
    """The report of a finished corpus, from its manifests. `files`: those of its sources."""
    split = (out / "train" / MANIFEST).exists()
    sides = [out / "train", out / "heldout"] if split else [out]
    manifests = [read_manifest(side) for side in sides]
    manifest, *others = manifests
    return PrepareReport(
        train=_side(sides[0], manifest),
        heldout=_side(sides[1], *others) if split else None,
        vocab=manifest.tokenizer.vocab,
        counts={step: (count[0], count[1]) for step, count in manifest.prepare["counts"].items()},
        examples=manifest.prepare["examples"],
        files=dict(Counter(file.kind for file in files)),
        heldout_by=manifest.prepare["settings"]["heldout_by"],
        round_trip=_round_trip(manifests),
        tags=manifest.prepare["settings"].get("tag_name", []),
    )


def _round_trip(manifests: list[Manifest]) -> tuple[int, int]:
    counts: Counter[str] = Counter()
    for manifest in manifests:
        for came_back, amounts in manifest.prepare["profile"]["round_trip"].items():
            counts[came_back] += amounts[0]
    return counts["same"], counts.total()


def _side(folder: Path, manifest: Manifest) -> Side:
    return Side(
        path=folder,
        shards=len(manifest.shards),
        documents=manifest.documents,
        tokens=manifest.tokens,
        text_bytes=manifest.text_bytes,
        fingerprint=manifest.fingerprint,
    )
