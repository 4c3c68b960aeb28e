"""The weights of sources: from the config to those of each mixture stage, in exact integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from data.config import DataConfig

MixtureStages = list[tuple[int, list[float]]]
"""(first sequence, weight of each source) of each stage."""


def mixture_stages(
    cfg: DataConfig, names: Sequence[str], tokens: Sequence[int], global_batch: int
) -> MixtureStages:
    """The stages of the config's mixture, the first at 0; a weight that no stage changes stays.

    names, tokens: of each source its name and the ids in its corpus.
    global_batch: sequences of a step.
    """
    weights = {name: source.weight for name, source in zip(names, cfg.sources)}
    stages = [(0, dict(weights))]
    for stage in cfg.stages:
        weights |= stage.weights
        if stage.from_step == 0:
            stages.pop()
        stages.append((stage.from_step * global_batch, dict(weights)))
    return [(start, list(_tempered(w, tokens, cfg.temperature).values())) for start, w in stages]


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Integers in exactly the ratio of the weights as they are written in decimal."""
    fractions = [Fraction(repr(float(weight))) for weight in weights]
    if not any(fractions):
        raise ValueError(f"data.sources: the weights are all 0 ({list(weights)}); give one source more")
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    integers = [int(fraction * scale) for fraction in fractions]
    common = math.gcd(*integers)
    return [integer // common for integer in integers]


def _tempered(weights: dict[str, float], tokens: Sequence[int], temperature: float) -> dict[str, float]:
    """The weights times (the source's tokens)^(1/T), relative to the largest source; T = 0 leaves them."""
    if temperature == 0:
        return weights
    # Rounded, so that the last bit of a machine's pow() is no part of the data order.
    tempered = {
        name: round(weight * (n / max(tokens)) ** (1 / temperature), 9)
        for (name, weight), n in zip(weights.items(), tokens)
    }
    for name, weight in weights.items():
        if weight and not tempered[name]:
            raise ValueError(
                f"data.temperature={temperature:g} leaves nothing of source {name!r}, weight {weight:g}: "
                "raise it, or give the source the weight 0"
            )
    return tempered
