"""How far two right runs of `germinal verify` may be apart: measured on one process, not fixed in advance.

Another layout adds up the same numbers in another order, so every rounding falls anew. The same happens where
one process starts from weights that are off by a rounding each. So the reference is run a second time from
such weights (the nudged run), and what that changes in a tensor is the yardstick for what a layout may change
in it: whatever the precision, the model and the machine's own way of adding up. docs/verify.md says why.
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

TIMES = 2.0
"""A layout may be so many times as far from the reference as the nudged run is."""

TURNED = 4
"""Elements of an update that may be off by a whole step: Adam divides a gradient by its own size, so where
one nearly cancels, a rounding turns the step around."""

Spread = dict[str, dict[str, float]]
"""Tensor name → {norm, distance, scale} of the nudged run, after one step."""


@dataclass(frozen=True)
class Floor:
    """A relative difference that is no fault whatever the nudged run says.

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


def spread_of(measured: Sequence[Measured], norms: dict[str, float]) -> Spread:
    """What `Limits` needs of the nudged run's whole tensors."""
    return {m.name: {"norm": norms[m.name], "distance": m.distance, "scale": m.scale} for m in measured}


def norms_of(engine: Engine, start: Sequence[Tensor]) -> dict[str, float]:
    """Of each whole tensor of one process: of its update since `start`, or of the state itself."""
    found = {}
    for chunk, first in zip(engine.chunks(), start, strict=True):
        tensor = chunk.tensor.detach().cpu().double()
        found[chunk.name] = float((tensor - first.double() if first.numel() else tensor).norm())
    return found


class Limits:
    """The bounds after one step, from what the nudged run changed until then.

    A tensor that was lucky is given what is usual for its kind.
    """

    def __init__(self, spread: Spread, precision: str) -> None:
        self._spread, self._floor = spread, floor(precision)
        self._usual: dict[str, float] = {}
        for kind in {kind_of(name) for name in spread}:
            squares = [row["distance"] ** 2 for name, row in spread.items() if kind_of(name) == kind]
            self._usual[kind] = math.sqrt(sum(squares) / len(squares))
        self._common = {
            kind: TIMES * abs(self.scale_of([Measured(n, 1.0, 0.0, row["scale"]) for n, row in rows]))
            for kind in self._usual
            if (rows := [(n, row) for n, row in spread.items() if kind_of(n) == kind])
        }

    @property
    def norms(self) -> dict[str, float]:
        return {name: row["norm"] for name, row in self._spread.items()}

    def distance(self, name: str) -> float:
        kind = kind_of(name)
        least = self._floor.update if kind == "model" else self._floor.moment
        return max(least, TIMES * max(self._spread[name]["distance"], self._usual[kind]))

    def scale(self, kind: str) -> float:
        """Of what all tensors of a kind have in common on one rank."""
        return max(self._floor.common, self._common[kind])

    def scale_of(self, measured: Sequence[Measured]) -> float:
        """The factor that pieces of one kind have in common, less one: each counts by how well it is known.

        Roundings point anywhere and cancel in it, tensor by tensor and element by element; a wrong divisor
        does not. So it shows 1 % where `distance` is 3 %.
        """
        weights = [self.distance(m.name) ** -2 for m in measured]
        return sum(w * m.scale for w, m in zip(weights, measured)) / sum(weights)


def common_limit(precision: str, curve: Sequence[dict[str, Any]], nudged: Sequence[dict[str, Any]]) -> float:
    """For loss and gradient norm: what the nudged run's are off by, over all steps until this one."""
    off = [
        abs(b[key] / a[key] - 1.0)
        for a, b in zip(curve, nudged, strict=True)
        for key in ("loss", "grad_norm")
        if a[key] and math.isfinite(a[key]) and math.isfinite(b[key])
    ]
    return max(floor(precision).common, TIMES * max(off, default=0.0))
