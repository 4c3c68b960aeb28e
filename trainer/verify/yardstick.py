"""How far two right runs of `germinal verify` may be apart: measured on one process, not fixed in advance.

Another layout adds up the same numbers in another order, so every rounding falls anew. The same happens where
one process starts from weights that are off by a rounding each. So the reference is run again from several
such sets of weights (the nudged runs), and what that changes in the tensors is the yardstick for what a
layout may change in them: whatever the precision, the model and the machine's own way of adding up.
docs/verify.md says why.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.engine import Chunk, Engine
from trainer.checkpoint import folder as folders
from trainer.checkpoint.store import load

UNIT_ROUNDOFF = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
"""The largest relative error of one rounding to the nearest."""

NUDGES = 3
"""Nudged runs. One alone is lucky too often: where a rounding decides whether a few elements of a tensor
change much or not at all, it may be the run in which they do not."""

TIMES = 2.0
"""A layout may be so many times as far from the reference as a nudged run is."""

DEVIATIONS = 4.0
"""So many standard deviations of a common factor are roundings."""

TURNED = 4
"""Elements of an update that may be off by a whole step: Adam divides a gradient by its own size, so where
one nearly cancels, a rounding turns the step around."""

Spread = dict[str, dict[str, Any]]
"""Tensor name → {norm, distance: the largest of the nudged runs', scales: each one's}, after one step."""


@dataclass(frozen=True)
class Floor:
    """A relative difference that is no fault whatever the nudged runs say.

    common: a factor that all elements share; loss and gradient norm. moment, update: of one tensor,
    ‖a-b‖/‖b‖.
    """

    common: float
    moment: float
    update: float


def floor(precision: str) -> Floor:
    """A common factor within one rounding cannot be told from it. fp32: a sum of N terms in another order
    differs by √N roundings, and 1e-4 is that for N of two million; a moment that is off by 1e-6 turns one
    element of an update in a million, which is 2·√1e-6 of it.
    """
    unit = UNIT_ROUNDOFF[precision]
    return Floor(common=max(1e-5, unit), moment=max(1e-4, unit), update=2e-3)


@dataclass(frozen=True)
class Measured:
    """One piece of a tensor against the reference's piece.

    distance: ‖a-b‖ over ‖b‖ (or over what a piece of this size has of the whole tensor's norm, where that is
    more); scale: ⟨a-b, b⟩/⟨b, b⟩, the factor by which it is too large, less one. share: of the tensor's
    elements.
    """

    name: str
    share: float
    distance: float
    scale: float


def kind_of(name: str) -> str:
    """`model`, or an optimiser state's name: `optim.exp_avg`."""
    return "model" if name.startswith("model.") else ".".join(name.split(".")[:2])


def nudge(engine: Engine, precision: str, seed: int) -> None:
    """Every weight off by up to one rounding of what the run computes in."""
    draw = torch.Generator().manual_seed(seed)
    for chunk in engine.chunks():
        if kind_of(chunk.name) == "model":
            noise = torch.rand(chunk.tensor.shape, generator=draw, dtype=torch.float64) * 2 - 1
            moved = chunk.tensor.detach().cpu().double() * (1 + noise * UNIT_ROUNDOFF[precision])
            chunk.tensor.detach().copy_(moved)
    engine.load(engine.scalars())


def begin(engine: Engine) -> list[Tensor]:
    """The weights that an update starts from, for `measure`: by chunk, empty for optimiser state."""
    return [
        c.tensor.detach().cpu().clone() if kind_of(c.name) == "model" else torch.empty(0)
        for c in engine.chunks()
    ]


def measure(
    engine: Engine, root: Path, step: int, start: Sequence[Tensor], norms: dict[str, float]
) -> list[Measured]:
    """Every chunk that this rank holds, owned or not, after `step` against the state saved in `root`.

    Parameters are measured by their update since `start`, the reference's since its own first weights; before
    any step, as they are. norms: of the reference's whole tensors; a whole tensor needs none.
    """
    chunks = engine.chunks()
    then, origin = _like(chunks), _like(chunks)
    load(folders.step_folder(root, step), then)
    if step:
        load(folders.step_folder(root, 0), origin)
    found = []
    for chunk, reference, first, own_first in zip(chunks, then, origin, start, strict=True):
        a, b = chunk.tensor.detach().cpu().double(), reference.tensor.double()
        update = step > 0 and kind_of(chunk.name) == "model"
        if update:
            a, b = a - own_first.double(), b - first.tensor.double()
        found.append(_measured(chunk, a, b, norms.get(chunk.name, 0.0), update=update))
    return found


def _like(chunks: Sequence[Chunk]) -> list[Chunk]:
    return [dataclasses.replace(c, tensor=torch.zeros_like(c.tensor, device="cpu")) for c in chunks]


def _measured(chunk: Chunk, a: Tensor, b: Tensor, whole_norm: float, *, update: bool) -> Measured:
    share = b.numel() / math.prod(chunk.shape)
    base = max(float(b.norm()), math.sqrt(share) * whole_norm)
    return Measured(chunk.name, share, *distance_and_scale(a, b, base=base, update=update))


def distance_and_scale(a: Tensor, b: Tensor, *, base: float, update: bool) -> tuple[float, float]:
    """‖a-b‖ / base, without the few elements of an update that are turned steps; and ⟨a-b, b⟩ / ⟨b, b⟩."""
    if torch.equal(a, b):
        return 0.0, 0.0
    off, b = (a - b).flatten(), b.flatten()
    scale = float(off @ b) / max(float(b @ b), 1e-60)
    if update:
        off = _without_turned(off, 2.0 * float(b.abs().max()))
    return float(off.norm()) / max(base, 1e-30), scale


def _without_turned(off: Tensor, whole_steps: float) -> Tensor:
    """`off` without its largest elements, so few and so large as turned steps can be."""
    count = min(TURNED, off.numel() // 8)
    largest = off.abs().topk(count).indices
    kept = torch.ones_like(off, dtype=torch.bool)
    # A rounding more than two steps, for their own difference; never NaN.
    kept[largest[off[largest].abs() <= whole_steps * 1.001]] = False
    return off[kept]


def spread_of(runs: Sequence[Sequence[Measured]], norms: dict[str, float]) -> Spread:
    """What `Limits` needs of the whole tensors of the nudged runs, all after the same step."""
    return {
        each[0].name: {
            "norm": norms[each[0].name],
            "distance": max(one.distance for one in each),
            "scales": [one.scale for one in each],
        }
        for each in zip(*runs, strict=True)
    }


def norms_of(engine: Engine, start: Sequence[Tensor]) -> dict[str, float]:
    """Of each whole tensor of one process: of its update since `start`, or of the state itself."""
    found = {}
    for chunk, first in zip(engine.chunks(), start, strict=True):
        tensor = chunk.tensor.detach().cpu().double()
        found[chunk.name] = float((tensor - first.double() if first.numel() else tensor).norm())
    return found


class Limits:
    """The bounds after one step, from what the nudged runs changed until then."""

    def __init__(self, spread: Spread, precision: str) -> None:
        self._spread, self._floor = spread, floor(precision)
        self._names: dict[str, list[str]] = {}
        for name in spread:
            self._names.setdefault(kind_of(name), []).append(name)
        self._distance = {
            kind: max(self._least(kind), TIMES * max(spread[name]["distance"] for name in names))
            for kind, names in self._names.items()
        }
        self._weights = {
            name: weight for names in self._names.values() for name, weight in self._weighed(names)
        }
        self._common = {kind: self._common_of(names) for kind, names in self._names.items()}

    @property
    def norms(self) -> dict[str, float]:
        return {name: row["norm"] for name, row in self._spread.items()}

    def distance(self, name: str) -> float:
        """Of a tensor: one of its kind was as far off by roundings alone. Each by itself is too lucky."""
        return self._distance[kind_of(name)]

    def scale(self, kind: str) -> float:
        """Of what all tensors of a kind have in common on one rank."""
        return max(self._floor.common, self._common[kind])

    def scale_of(self, measured: Sequence[Measured]) -> float:
        """The factor that pieces of one kind have in common, less one: each counts by how well it is known.

        Roundings point anywhere and cancel in it, tensor by tensor and element by element; a wrong divisor
        does not. So it shows 1 % where `distance` is 3 %.
        """
        return self._mean([(m.name, m.scale) for m in measured])

    def _least(self, kind: str) -> float:
        return self._floor.update if kind == "model" else self._floor.moment

    def _weighed(self, names: Sequence[str]) -> list[tuple[str, float]]:
        """Tensors of one kind with 1 / distance²; one that was lucky is given what is usual."""
        distances = [self._spread[name]["distance"] for name in names]
        usual = math.sqrt(sum(d * d for d in distances) / len(distances))
        least = max(usual, self._least(kind_of(names[0])) / TIMES)
        return [(name, max(d, least) ** -2) for name, d in zip(names, distances, strict=True)]

    def _mean(self, scales: Sequence[tuple[str, float]]) -> float:
        weights = [self._weights[name] for name, _ in scales]
        return sum(w * scale for w, (_, scale) in zip(weights, scales)) / sum(weights)

    def _common_of(self, names: Sequence[str]) -> float:
        """Of each nudged run, what its tensors had in common, and its deviation from how they differ."""
        found = 0.0
        whole = sum(self._weights[name] for name in names)
        for scales in zip(*(self._spread[name]["scales"] for name in names), strict=True):
            common = abs(self._mean(list(zip(names, scales))))
            deviation = math.hypot(*(self._weights[n] * scale / whole for n, scale in zip(names, scales)))
            found = max(found, TIMES * common, DEVIATIONS * deviation)
        return found


def common_limit(
    precision: str, curve: Sequence[dict[str, Any]], nudged: Sequence[Sequence[dict[str, Any]]]
) -> float:
    """For loss and gradient norm: what the nudged runs' are off by, over all steps until this one."""
    off = [
        abs(b[key] / a[key] - 1.0)
        for run in nudged
        for a, b in zip(curve, run, strict=True)
        for key in ("loss", "grad_norm")
        if a[key] and math.isfinite(a[key]) and math.isfinite(b[key])
    ]
    return max(floor(precision).common, TIMES * max(off, default=0.0))
