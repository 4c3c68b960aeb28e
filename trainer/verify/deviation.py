"""How far the tensors of a run are from the reference's, after the same step.

With b a tensor of the reference and a the same tensor of the run that is measured:

    distance     ‖a - b‖ / ‖b‖
    scale        ⟨a - b, b⟩ / ⟨b, b⟩     so that a is closest to (1 + scale) · b

Parameters are compared by their update since the start (a and b are then updates), optimiser moments as they
are. Optimiser moments are linear in the gradients, so a wrong gradient shows in them where Adam's update,
which has no scale, may hide it.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from parallel.engine import Chunk, Engine
from trainer.checkpoint import folder as folders
from trainer.checkpoint.store import load

TURNED = 4
"""Elements of an update that may be off by a whole step: Adam divides a gradient by its own size, so where
one nearly cancels, a rounding turns the step around."""


@dataclass(frozen=True)
class Deviation:
    """One rank's chunk of a tensor against the reference's.

    name: the tensor's, as in a checkpoint.
    share: the chunk's elements over the tensor's.
    distance: ‖a - b‖ / ‖b‖; where the chunk has less than its share of the whole tensor's norm, over that.
    scale: ⟨a - b, b⟩ / ⟨b, b⟩.
    """

    name: str
    share: float
    distance: float
    scale: float


def kind_of(name: str) -> str:
    """Return the kind of a tensor: `model`, or an optimiser state's name such as `optim.exp_avg`."""
    return "model" if name.startswith("model.") else ".".join(name.split(".")[:2])


def start_weights(engine: Engine) -> list[Tensor]:
    """Copy the weights from which updates are measured: one a chunk, empty for optimiser state."""
    return [
        c.tensor.detach().cpu().clone() if kind_of(c.name) == "model" else torch.empty(0)
        for c in engine.chunks()
    ]


def norms_of(engine: Engine, start: Sequence[Tensor]) -> dict[str, float]:
    """Return ‖b‖ of every whole tensor of one process: of its update since `start`, or of its state."""
    found = {}
    for chunk, first in zip(engine.chunks(), start, strict=True):
        tensor = chunk.tensor.detach().cpu().double()
        found[chunk.name] = float((tensor - first.double() if first.numel() else tensor).norm())
    return found


def measure(
    engine: Engine, reference: Path, step: int, start: Sequence[Tensor], norms: dict[str, float]
) -> list[Deviation]:
    """Compare every chunk that this rank holds, replicas too, with the reference.

    Args:
        engine: of the run that is measured, after `step` steps.
        reference: folder of the reference's states, one a step (see `trainer.verify.reference`).
        step: number of steps; with 0, before any update, parameters are compared as they are.
        start: the engine's `start_weights`; the reference's updates count from its own first weights.
        norms: ‖b‖ of the reference's whole tensors; may be empty where the engine holds whole tensors.
    """
    chunks = engine.chunks()
    then, origin = _zeros_like(chunks), _zeros_like(chunks)
    load(folders.step_folder(reference, step), then)
    if step:
        load(folders.step_folder(reference, 0), origin)
    found = []
    for chunk, expected, first, own_first in zip(chunks, then, origin, start, strict=True):
        a, b = chunk.tensor.detach().cpu().double(), expected.tensor.double()
        update = step > 0 and kind_of(chunk.name) == "model"
        if update:
            a, b = a - own_first.double(), b - first.tensor.double()
        share = b.numel() / math.prod(chunk.shape)
        base = max(float(b.norm()), math.sqrt(share) * norms.get(chunk.name, 0.0))
        found.append(Deviation(chunk.name, share, *distance_and_scale(a, b, base=base, update=update)))
    return found


def _zeros_like(chunks: Sequence[Chunk]) -> list[Chunk]:
    return [dataclasses.replace(c, tensor=torch.zeros_like(c.tensor, device="cpu")) for c in chunks]


def distance_and_scale(a: Tensor, b: Tensor, *, base: float, update: bool) -> tuple[float, float]:
    """Return ‖a - b‖ / base and ⟨a - b, b⟩ / ⟨b, b⟩.

    The distance of an update leaves out the few elements that a rounding may have turned around.
    """
    if torch.equal(a, b):
        return 0.0, 0.0
    off, b = (a - b).flatten(), b.flatten()
    scale = float(off @ b) / max(float(b @ b), 1e-60)
    if update:
        off = _without_turned(off, 2.0 * float(b.abs().max()))
    return float(off.norm()) / max(base, 1e-30), scale


def _without_turned(off: Tensor, two_steps: float) -> Tensor:
    """Drop the `TURNED` largest elements of `off`, as far as each is at most `two_steps`."""
    count = min(TURNED, off.numel() // 8)
    largest = off.abs().topk(count).indices
    kept = torch.ones_like(off, dtype=torch.bool)
    # A rounding more than two steps, for their own difference; never NaN.
    kept[largest[off[largest].abs() <= two_steps * 1.001]] = False
    return off[kept]
