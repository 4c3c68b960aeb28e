"""Which documents' labels a fine-tuning is given, as corpora in the comparison's folder. Imports no torch.

    labels/validation         documents that learning rates are chosen by
    labels/seed-3/n-16        the 16 labelled documents of seed 3

The order of a seed's documents is a pure function of the seed and of the corpus's labels, and n labels are
the first n of it: those of 8 are among those of 16, and pre-trained and random weights have the same. The
order takes a document of each class in turn, as long as the class has one: drawn regardless of class, few
labels would differ more from seed to seed in what they can teach than by the first weights. Of fewer labels
than classes some classes are missing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.corpus.manifest import read_manifest
from data.corpus.subset import labels as labels_of
from data.corpus.subset import write_subsets
from trainer.config.transferring import LABELS, TransferConfig
from trainer.folder.fence import Guard, unfenced
from trainer.transfer import plan

_VALIDATION = "validation"


def shuffled(numbers: Sequence[int], key: str) -> list[int]:
    """Return the numbers in the order that `key` gives them, the same for ever."""
    return sorted(numbers, key=lambda number: hashlib.sha256(f"{key} {number}".encode()).digest())


def stratified(numbers: Sequence[int], classes: Sequence[int], key: str) -> list[int]:
    """Return the numbers in an order that takes one of each class in turn, the classes in an order of their
    own in each round.

    classes: of each number.
    """
    rounds: Counter[int] = Counter()
    placed = {}
    for number in shuffled(numbers, key):
        placed[number] = rounds[classes[number]]  # the round that it is taken in
        rounds[classes[number]] += 1
    return sorted(shuffled(numbers, f"{key} rounds"), key=lambda number: placed[number])


def folder_of(cfg: TransferConfig, labels: int, seed: int) -> Path:
    """Where the labelled documents of a fine-tuning are."""
    return cfg.folder / LABELS / f"seed-{seed}" / f"n-{labels}"


def validation(cfg: TransferConfig) -> Path:
    """Where the documents are that learning rates are chosen by."""
    return cfg.folder / LABELS / _VALIDATION


def write_labels(cfg: TransferConfig, guard: Guard = unfenced) -> dict[int, list[int]]:
    """Write all these corpora. Return number of labels → how many classes are among them, one for each seed
    of the table.

    guard: raises where this process may write no more.

    Raises ValueError, one line, where there are fewer labelled documents than are asked for.
    """
    classes = labels_of(cfg.labelled)
    known = np.flatnonzero(classes >= 0).tolist()
    left = len(known) - cfg.validation
    if max(cfg.labels) > left:
        raise ValueError(
            f"labels={max(cfg.labels)}: {cfg.labelled} has {len(known)} labelled documents, of which "
            f"validation={cfg.validation} are kept for the choice of rates: ask for at most {max(0, left)}"
        )
    order = shuffled(known, _VALIDATION)
    kept, drawn_from = order[: cfg.validation], sorted(order[cfg.validation :])
    wanted = {validation(cfg): sorted(kept)}
    found: dict[int, list[int]] = {number: [] for number in cfg.labels}
    for seed in plan.seeds(cfg):
        drawn = stratified(drawn_from, classes.tolist(), f"labels {seed}")
        numbers = plan.rate_labels(cfg) if seed >= plan.FIRST_RATE_DRAW else cfg.labels
        wanted |= {folder_of(cfg, number, seed): drawn[:number] for number in numbers}
        if seed < plan.FIRST_RATE_DRAW:
            for number in cfg.labels:
                found[number].append(len(set(classes[drawn[:number]].tolist())))
    write_subsets(cfg.labelled, wanted, guard)
    return found


def all_classes(cfg: TransferConfig) -> int:
    """How many classes the labelled corpus has."""
    return len(read_manifest(cfg.labelled).classes)
