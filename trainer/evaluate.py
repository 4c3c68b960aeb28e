"""Held-out evaluation inside the run: loss in nats per token and, tokenizer-free, in bits per byte of
text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.loader import HeldoutLoader
from parallel.engine import Engine


@dataclass(frozen=True)
class HeldoutResult:
    """`loss`: nats per target token. `bits_per_byte`: total nats / ln 2 / UTF-8 bytes of the documents
    evaluated.
    """

    loss: float
    bits_per_byte: float


class Evaluator:
    """Evaluates every held-out set on the engine, at the steps that `every` names and at the last.

    The sets are cut by document, so the figure does not depend on the batch, the layout or the training
    stream.
    """

    def __init__(self, sets: Sequence[HeldoutLoader], *, every: int) -> None:
        self.sets = sets
        self.every = every

    def due(self, step: int, *, last: bool) -> bool:
        """Whether an evaluation follows this step; `every` 0 means never, not even at the end."""
        return bool(self.sets) and self.every > 0 and (last or step % self.every == 0)

    def __call__(self, engine: Engine) -> dict[str, HeldoutResult]:
        """Name of each held-out set → its result; the same on every rank."""
        results = {}
        for heldout in self.sets:
            loss_sum, count = engine.evaluate(heldout)
            results[heldout.name] = HeldoutResult(
                loss=loss_sum / max(1.0, count),
                bits_per_byte=loss_sum / math.log(2.0) / max(1, heldout.text_bytes),
            )
        return results
