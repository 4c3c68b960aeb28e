"""Does a model that is 80 % sure err in one case of five?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BINS = 15  # as in Guo et al.


@dataclass(frozen=True)
class Bin:
    """The answers whose confidence is above `low`, and at most `high`.

    count: how many there are.
    confidence, accuracy: their means; 0 where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error, Σ over bins of count / n · |accuracy - confidence|, and the bins
    (Guo et al. 2017, arXiv:1706.04599, equation 3).
    """

    error: float
    bins: tuple[Bin, ...]

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON; bins without an answer are left out."""
        return {"calibration_error": self.error, "bins": [asdict(one) for one in self.bins if one.count]}


def calibrate(probabilities: np.ndarray, answers: np.ndarray, bins: int = BINS) -> Calibration:
    """Return how well the probability of the likeliest choice tells whether it is right.

    probabilities: [answers, choices], each row's sum is 1; 0 for a choice that a row does not have.
    answers: int [answers], the right choices.
    bins: how many of equal width there are from 0 to 1.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == answers
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    mean = np.maximum(counts, 1)
    sure = np.bincount(place, confidence, minlength=bins) / mean
    hit = np.bincount(place, right, minlength=bins) / mean
    error = float((counts * np.abs(hit - sure)).sum() / max(1, len(answers)))
    found = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), sure.tolist(), hit.tolist())
    return Calibration(error, tuple(Bin(*one) for one in found))
