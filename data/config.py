"""The `data:` section of a config: what a run reads. Plain dataclasses; imports no torch and no numpy.

Each field is annotated with its key's meaning and limits; `trainer.config.keys` explains how, and checks the
limits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

Packing = Literal["cut", "best_fit", "one", "views", "pair", "marked"]
OnCorrupt = Literal["stop", "quarantine"]


@dataclass
class Source:
    """One corpus in the mixture."""

    path: Annotated[
        str,
        "the folder that `germinal prepare` made: local, from the working directory, or http(s):// or s3://",
        "not empty",
    ] = ""
    weight: Annotated[float, "its share of the sequences, relative to the others", "≥ 0"] = 1.0
    name: Annotated[str, "how stages and reports call it; empty: the path"] = ""
    max_epochs: Annotated[
        float, "passes after which it leaves the mixture; 0: it never does", "≥ 0", "in epochs"
    ] = 0.0


@dataclass
class Heldout:
    """One corpus to evaluate on."""

    path: Annotated[
        str,
        "the folder that `germinal prepare` made: local, from the working directory, or http(s):// or s3://",
        "not empty",
    ] = ""
    name: Annotated[str, "its key in the metrics; empty: the path"] = ""


@dataclass
class MixtureStage:
    """New weights from a step on."""

    from_step: Annotated[int, "the first step of the stage, after that of the stage before", "≥ 0"] = 0
    weights: Annotated[
        dict[str, float], "source's name → its new weight; a source that is left out keeps its own", "≥ 0"
    ] = field(default_factory=dict)


@dataclass
class Augment:
    """How the views of a picture differ from it, drawn anew for each sequence number and view. Held-out
    pictures are shown by their centre square.
    """

    crop_scale: Annotated[
        float,
        "a view is a crop of at least this share of the picture's area, drawn evenly up to all of it; "
        "1: its centre square",
        "> 0",
        "≤ 1",
    ] = 1.0
    crop_ratio: Annotated[
        float, "a crop's width is from this share of its height to the inverse share", "> 0", "≤ 1"
    ] = 0.75
    flip: Annotated[float, "share of the views that are mirrored, left to right", "≥ 0", "≤ 1"] = 0.0
    jitter: Annotated[
        float, "share of the views whose colours are changed by the four keys below", "≥ 0", "≤ 1"
    ] = 1.0
    brightness: Annotated[float, "b: brightness times a factor from 1 - b to 1 + b", "≥ 0"] = 0.0
    contrast: Annotated[float, "the same of contrast", "≥ 0"] = 0.0
    saturation: Annotated[float, "the same of saturation", "≥ 0"] = 0.0
    hue: Annotated[float, "h: hue turned by -h to h of the whole circle", "≥ 0", "≤ 0.5"] = 0.0
    grayscale: Annotated[float, "share of the views without colour", "≥ 0", "≤ 1"] = 0.0


@dataclass
class DataConfig:
    """The stream of training sequences, and the held-out corpora."""

    sources: Annotated[list[Source], "the corpora to train on, each with a name of its own", "not empty"] = (
        field(default_factory=list)
    )
    heldout: Annotated[list[Heldout], "the corpora to evaluate on, each with a name of its own"] = field(
        default_factory=list
    )
    seq_len: Annotated[int, "inputs, and targets, of a sequence", "≥ 1", "in tokens"] = 256
    document_mask: Annotated[bool, "attention stays inside a document, and positions start again with it"] = (
        False
    )
    ledger: Annotated[bool, "write which sequences every step consumed: ledger.jsonl, ledger-*.jsonl"] = False
    packing: Annotated[
        Packing,
        "cut: documents end to end, cut every seq_len; best_fit: whole documents, only those longer are cut; "
        "one: one document a sequence, its end left out where it is longer; views: two crops of one "
        "document, a half of the sequence each; pair: the two texts of one document, a half each; marked: "
        "one document a sequence, and a mark for each of its ids, as `prepare --task` makes them",
    ] = "cut"
    partners: Annotated[
        bool,
        "give each sequence another one of its source besides, as next-sentence prediction needs",
        "not with data.packing=views or pair or marked",
    ] = False
    stages: Annotated[list[MixtureStage], "new weights from a step on, in the order of their steps"] = field(
        default_factory=list
    )
    temperature: Annotated[
        float,
        "T multiplies each weight by (the source's tokens, or documents with image_size)^(1/T): 1 by size, a "
        "large T evenly; 0: off",
        "≥ 0",
    ] = 0.0
    shuffle_blocks: Annotated[int, "blocks of documents that are shuffled as one", "≥ 1", "in blocks"] = 64
    image_size: Annotated[
        int,
        "read each document's picture, and scale its views to squares of this size; 0: read no pictures",
        "≥ 0",
        "needs data.packing=one",
        "in pixels",
    ] = 0
    image_views: Annotated[
        int,
        "views of each picture, each with crop, flip and colours of its own",
        "≥ 1",
        "needs data.image_size",
    ] = 1
    augment: Annotated[Augment, "how the views of a picture are drawn"] = field(default_factory=Augment)
    decode_threads: Annotated[
        int, "threads that decode pictures ahead of need; 0: one a core of the process, 16 at most", "≥ 0"
    ] = 0
    on_corrupt: Annotated[
        OnCorrupt,
        "a damaged document ends the run (stop), or the sequences that hold it are masked (quarantine)",
    ] = "stop"
    prefetch: Annotated[int, "read ahead", "≥ 1", "in steps"] = 4
    cache_dir: Annotated[
        str,
        "where remote shards are kept, from the working directory; empty: they are read by range, uncached",
    ] = ""
    cache_bytes: Annotated[int, "the most that cache_dir may hold", "≥ 1", "in bytes"] = 100_000_000_000


def check(cfg: DataConfig) -> None:
    """Check that names are unique, and that stages follow one another and weigh known sources. The limits of
    single keys are checked by `trainer.config.keys`.

    Raises:
        ValueError: one line naming the key and the value.
    """
    names = [source.name or source.path for source in cfg.sources]
    sets = [heldout.name or heldout.path for heldout in cfg.heldout]
    for key, what, called in (("sources", "sources", names), ("heldout", "sets", sets)):
        for name in called:
            if called.count(name) > 1:
                raise ValueError(f"data.{key} has two {what} called {name!r}; give each its own name")
    if cfg.packing in ("views", "pair") and cfg.seq_len % 2:
        raise ValueError(
            f"data.seq_len={cfg.seq_len} is odd, and data.packing={cfg.packing} halves a sequence: add or "
            "take 1"
        )
    if cfg.packing in ("views", "pair") and cfg.seq_len < 4:
        raise ValueError(
            f"data.seq_len={cfg.seq_len} with data.packing={cfg.packing}: the first input of a text is its "
            "separator, so none of its tokens has room in half a sequence: set at least 4"
        )
    for i, stage in enumerate(cfg.stages):
        if i and stage.from_step <= cfg.stages[i - 1].from_step:
            raise ValueError(
                f"data.stages[{i}].from_step={stage.from_step} does not come after the stage before"
            )
        for name in stage.weights:
            if name not in names:
                raise ValueError(f"data.stages[{i}].weights: no source is called {name!r}; there are {names}")
