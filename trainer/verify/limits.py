"""How far two right runs of `germinal verify` may be apart: measured on one process, not fixed in advance.

Another layout adds up the same numbers in another order, so every rounding falls anew. The same happens where
one process starts from weights that are off by a rounding each. So the reference is run again from several
such sets of weights (the nudged runs n = 1 … N). What that changes in the tensors bounds what a layout may
change in them, whatever the precision, the model and the machine's own way of adding up.

After one step, with d(t, n) and s(t, n) the distance and the scale of tensor t in nudged run n (see
`trainer.verify.deviation`), for the tensors t of one kind:

    limit of a distance        max(floor, TIMES · max over t and n of d(t, n))
    weight of a tensor         w(t) = 1 / max(d(t), usual)²,  d(t) = max over n of d(t, n)
                               usual: the root mean square of d(t) over the kind, at least floor / TIMES
    common factor              S = Σ w(t) s(t) / Σ w(t)
    its standard deviation     σ = √Σ (w(t) s(t))² / Σ w(t)
    limit of a common factor   max(floor, max over n of TIMES · |S(n)| and DEVIATIONS · σ(n))

A parameter whose update or a moment has a d(t) above NOISE has a gradient of roundings alone: the true one is
0, as that of a key's bias is, since a softmax does not change where all its arguments grow alike. Tensors of
such a parameter say only whether their gradient is one of roundings here too: their limit is ROUNDINGS, or
TIMES their own farthest distance where that is more, and they have no part in S.

docs/verify.md gives the reasons, and the trials behind the constants.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from trainer.verify.deviation import Deviation, kind_of

UNIT_ROUNDOFF = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
"""The largest relative error of one rounding to the nearest."""

TIMES = 2.0
"""A layout may be so many times as far from the reference as a nudged run is."""

DEVIATIONS = 4.0
"""A common factor may be so many of its standard deviations."""

NOISE = 0.5
"""A tensor of which a nudged run changes more than this share consists of roundings. In bf16 an update
changes by 0.2 of itself, a moment by less."""

ROUNDINGS = 100.0
"""How far a tensor of roundings may be from the reference's, which are others: the quotient of two such
numbers may be anything, and that of their squares (a second moment) more: 2 to 7 were seen. A gradient that
is not 0 is beyond it by orders of magnitude."""


@dataclass(frozen=True)
class Floor:
    """Relative differences that are no fault, whatever the nudged runs changed.

    common: of loss, gradient norm and a common factor.
    moment: the distance of one optimiser moment.
    update: the distance of one parameter's update.
    """

    common: float
    moment: float
    update: float


def floor(precision: str) -> Floor:
    """Return the floor of a precision: a factor within one rounding cannot be told from the rounding.

    In fp32 a sum of N terms in another order differs by √N roundings, and 1e-4 is that for N of two million;
    a moment that is off by 1e-6 turns one element of an update in a million, which is 2·√1e-6 of the update.
    """
    unit = UNIT_ROUNDOFF[precision]
    return Floor(common=max(1e-5, unit), moment=max(1e-4, unit), update=2e-3)


class TensorSpread(TypedDict):
    """What the nudged runs changed in one tensor after one step.

    norm: ‖b‖ of the reference.
    distance: the largest of the nudged runs.
    scales: the scale of each nudged run.
    """

    norm: float
    distance: float
    scales: list[float]


Spread = dict[str, TensorSpread]
"""By tensor name, all after the same step."""


def spread_of(runs: Sequence[Sequence[Deviation]], norms: dict[str, float]) -> Spread:
    """Return the spread of the nudged runs' whole tensors after one step; `norms`: the reference's ‖b‖."""
    return {
        each[0].name: {
            "norm": norms[each[0].name],
            "distance": max(one.distance for one in each),
            "scales": [one.scale for one in each],
        }
        for each in zip(*runs, strict=True)
    }


def _parameter(name: str) -> str:
    """Return the parameter that a tensor, its weights or a moment of it, belongs to."""
    return name.removeprefix(f"{kind_of(name)}.")


class Limits:
    """The limits after one step; the module's docstring has the formulas.

    norms: tensor name → ‖b‖ of the reference, for `trainer.verify.deviation.measure`.
    """

    def __init__(self, spread: Spread, precision: str) -> None:
        self.norms = {name: tensor["norm"] for name, tensor in spread.items()}
        self._spread, self._floor = spread, floor(precision)
        self._weights: dict[str, float] = {}  # 0 for what is noise
        self._distance: dict[str, float] = {}  # by tensor
        self._common: dict[str, float] = {}
        kinds: dict[str, list[str]] = {}
        for name in spread:
            kinds.setdefault(kind_of(name), []).append(name)
        noisy = {_parameter(name) for name, one in spread.items() if one["distance"] > NOISE}
        for kind, names in kinds.items():
            least = self._floor.update if kind == "model" else self._floor.moment
            noise = [name for name in names if _parameter(name) in noisy]
            told = [name for name in names if name not in noise]
            for group, at_least in ((noise, ROUNDINGS), (told, least)):
                farthest = max((spread[name]["distance"] for name in group), default=0.0)
                self._distance |= dict.fromkeys(group, max(at_least, TIMES * farthest))
            self._weights |= dict.fromkeys(noise, 0.0) | self._weigh(told, least)
            self._common[kind] = self._common_limit(told)

    def distance(self, name: str) -> float:
        """Limit of one tensor's distance. It is one for all tensors of a kind but noise: the farthest of them
        was so far off by roundings alone, and a single tensor may be near by chance.
        """
        return self._distance[name]

    def common_factor(self, deviations: Sequence[Deviation]) -> float:
        """Return S of one rank's chunks of one kind.

        Roundings point anywhere and cancel in S, tensor by tensor and element by element; a wrong divisor
        does not cancel. So S shows 1 % where a distance is 3 % from roundings alone.
        """
        return self._weighted_mean([(one.name, one.scale) for one in deviations])

    def common(self, kind: str) -> float:
        """Limit of |S| of one kind."""
        return max(self._floor.common, self._common[kind])

    def _weigh(self, names: Sequence[str], least_distance: float) -> dict[str, float]:
        """Return w(t); `usual` keeps a tensor that the nudged runs hardly moved from outweighing the rest."""
        distances = [self._spread[name]["distance"] for name in names]
        usual = math.sqrt(sum(d * d for d in distances) / max(1, len(distances)))
        least = max(usual, least_distance / TIMES)
        return {name: max(d, least) ** -2 for name, d in zip(names, distances, strict=True)}

    def _weighted_mean(self, scales: Sequence[tuple[str, float]]) -> float:
        weights = [self._weights[name] for name, _ in scales]
        return sum(w * s for w, (_, s) in zip(weights, scales) if w) / (sum(weights) or 1.0)

    def _common_limit(self, names: Sequence[str]) -> float:
        """Return the largest TIMES · |S(n)| or DEVIATIONS · σ(n) of the nudged runs n."""
        found = 0.0
        whole = sum(self._weights[name] for name in names)
        for scales in zip(*(self._spread[name]["scales"] for name in names), strict=True):
            common = abs(self._weighted_mean(list(zip(names, scales))))
            sigma = math.hypot(*(self._weights[n] * scale / whole for n, scale in zip(names, scales)))
            found = max(found, TIMES * common, DEVIATIONS * sigma)
        return found


def curve_limit(
    precision: str, curve: Sequence[dict[str, Any]], nudged: Sequence[Sequence[dict[str, Any]]]
) -> float:
    """Return the limit of the relative error of loss and gradient norm.

    It is TIMES the largest relative difference of any nudged run, at any of the steps in `curve`.

    Args:
        precision: of the run.
        curve: the reference's {loss, grad_norm} of each step until now.
        nudged: the same of each nudged run.
    """
    off = [
        abs(b[key] / a[key] - 1.0)
        for run in nudged
        for a, b in zip(curve, run, strict=True)
        for key in ("loss", "grad_norm")
        if a[key] and math.isfinite(a[key]) and math.isfinite(b[key])
    ]
    return max(floor(precision).common, TIMES * max(off, default=0.0))
