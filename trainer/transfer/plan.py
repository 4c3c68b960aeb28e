"""Which fine-tunings a comparison consists of. Pure; imports no torch.

Learning rates come first: each is tried with both kinds of first weights, every method and the numbers of
labels of `rates_at`, and scored on documents that are neither among the labels nor held out. The best one is
used for the fine-tunings that the table is made of, whose scores are of the held-out corpus. So random
weights have the rate that suits them, and nothing is chosen by the held-out corpus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainer.config.transferring import TransferConfig

PRETRAINED, RANDOM = "pretrained", "random"
ARMS = (PRETRAINED, RANDOM)
VALIDATION, HELDOUT = "validation", "heldout"
FIRST_RATE_DRAW = 1000  # no seed of the table's


@dataclass(frozen=True)
class Trial:
    """One fine-tuning.

    arm: its first weights, of `ARMS`.
    method: `finetune.method`.
    labels: how many labelled documents it is given.
    seed: draws them, the first weights that are drawn, and the order.
    rate: the highest learning rate.
    on: the documents that it is scored on.
    """

    arm: str
    method: str
    labels: int
    seed: int
    rate: float
    on: str

    @property
    def key(self) -> str:
        """Its name, also of its files."""
        return f"{self.arm}-{self.method}-{self.labels}-seed{self.seed}-lr{self.rate:g}-{self.on}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Scores = Mapping[str, float]
"""`Trial.key` → score."""


def seeds(cfg: TransferConfig) -> list[int]:
    """The seeds of the table, then those that rates are chosen with."""
    return [*range(cfg.seeds), *range(FIRST_RATE_DRAW, FIRST_RATE_DRAW + cfg.rate_draws)]


def rate_trials(cfg: TransferConfig) -> Iterator[Trial]:
    """Yield the fine-tunings that learning rates are chosen by."""
    for method in cfg.methods:
        if len(cfg.rates[method]) > 1:
            for number in rate_labels(cfg):
                for arm in ARMS:
                    yield from _rate_trials(cfg, arm, method, number)


def rate_labels(cfg: TransferConfig) -> list[int]:
    """The numbers of labels that rates are chosen at: of `rates_at` those within the range of `labels`; where
    there is none, the largest of `labels`.
    """
    low, high = min(cfg.labels), max(cfg.labels)
    return sorted(number for number in cfg.rates_at if low <= number <= high) or [high]


def rate(cfg: TransferConfig, scores: Scores, arm: str, method: str, labels: int) -> float:
    """Return the learning rate of fine-tunings with so many labels: the one with the best mean score at the
    nearest number of `rates_at`, by ratio; the lower one of two that are as good.
    """
    rates = sorted(cfg.rates[method])
    if len(rates) == 1:
        return rates[0]
    nearest = min(rate_labels(cfg), key=lambda number: (abs(math.log(number / labels)), number))
    found: dict[float, list[float]] = {}
    for trial in _rate_trials(cfg, arm, method, nearest):
        found.setdefault(trial.rate, []).append(scores[trial.key])
    return max(sorted(found), key=lambda each: sum(found[each]))


def score_trials(cfg: TransferConfig, scores: Scores) -> Iterator[Trial]:
    """Yield the fine-tunings of the table. scores: of all `rate_trials`."""
    for labels in sorted(cfg.labels):
        for method in cfg.methods:
            for arm in ARMS:
                chosen = rate(cfg, scores, arm, method, labels)
                for seed in range(cfg.seeds):
                    yield Trial(arm, method, labels, seed, chosen, HELDOUT)


def _rate_trials(cfg: TransferConfig, arm: str, method: str, labels: int) -> Iterator[Trial]:
    for each in sorted(cfg.rates[method]):
        for draw in range(cfg.rate_draws):
            yield Trial(arm, method, labels, FIRST_RATE_DRAW + draw, each, VALIDATION)
