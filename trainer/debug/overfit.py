"""Can the model learn one batch by heart? If not, forward, backward, update or learning rate is wrong.

The loss cannot always fall to zero: where two sequences of the batch begin alike and go on differently, no
model can know which one it reads. The least possible loss is the entropy of the next token among the equal
beginnings in the batch.

    verdict: yes, if within the given steps  loss - least possible loss ≤ NEAR_ZERO  (nats a target)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.stream.batch import Batch
from data.stream.rows import SequenceRows
from parallel.engine import Engine

NEAR_ZERO = 0.1
"""Nats a target: a perplexity of 1.1. A model that has learnt nothing has ln(vocabulary), 6 to 12."""

FALLING = 0.01
"""Of the loss above the least possible one: the share that goes at the end where a loss still falls."""

STEPS = 300


@dataclass(frozen=True)
class Verdict:
    """Whether a batch was learnt by heart.

    steps: steps taken.
    first, last: loss of the first and of the last step, in nats a target.
    least: the least possible loss.
    most_steps: steps that were allowed.
    still_falling: the loss was still falling when they were over.
    """

    steps: int
    first: float
    last: float
    least: float
    most_steps: int
    still_falling: bool = False

    @property
    def learnt(self) -> bool:
        return self.last - self.least <= NEAR_ZERO  # False for NaN

    def __str__(self) -> str:
        fell = f"the loss fell from {self.first:.3f} to {self.last:.3f} nats a target in {self.steps} steps"
        rule = f"(rule: at most {NEAR_ZERO} above {self.least:.3f}, the least possible)"
        if self.learnt:
            return f"overfit: yes: {fell} {rule}"
        wrong = "forward, backward or update is wrong, or optim.lr does not suit"
        if self.still_falling:
            why = f"more --steps are needed, for the loss was still falling; else {wrong}"
        else:
            why = f"{wrong}; the loss did not fall any more, so more --steps will hardly help"
        return f"overfit: NO: {fell} {rule}: {why}"


def overfit(
    engine: Engine,
    batches: Sequence[Batch],
    *,
    lr: float,
    steps: int,
    least: float,
    told: Callable[[int, float, float], None],
) -> Verdict:
    """Take up to `steps` steps on the same batch, at the constant rate `lr`, until it is learnt. Collective.

    told: called after each step with its number, loss and gradient norm.
    """
    losses: list[float] = []
    for number in range(1, steps + 1):
        result = engine.step(batches, lr=lr)
        loss = result.loss_sum / result.count if result.count else math.nan
        losses.append(loss)
        told(number, loss, result.grad_norm)
        if result.fault:
            raise RuntimeError(f"step {number} on the same batch: {result.fault}")
        if loss - least <= NEAR_ZERO or not result.count:
            break
    return Verdict(len(losses), losses[0], losses[-1], least, steps, still_falling(losses, least))


def still_falling(losses: Sequence[float], least: float) -> bool:
    """Whether the last quarter of the steps took away at least a hundredth of what was left of the loss above
    `least`. Halves of that quarter are compared, for single steps are noisy.
    """
    quarter = losses[-max(2, len(losses) // 4) :]
    if len(quarter) < 2:
        return False
    half = len(quarter) // 2
    before, after = sum(quarter[:half]) / half, sum(quarter[-half:]) / half
    return before - after >= FALLING * (before - least)


def least_loss(rows: SequenceRows) -> float:
    """Return the least loss that any model can have on these sequences, in nats a target: what comes next is
    uncertain where several sequences, or documents under a document mask, have begun alike.
    """
    followed: dict[int, Counter[int]] = defaultdict(Counter)
    known: dict[tuple[int, int], int] = {}  # (beginning without its last token, that token) → beginning
    documents = None if rows.documents is None else rows.documents.tolist()
    for row, (tokens, following) in enumerate(zip(rows.tokens.tolist(), rows.following.tolist())):
        beginning, document = 0, None
        for column, (token, target) in enumerate(zip(tokens, following)):
            if documents is not None and documents[row][column] != document:
                beginning, document = 0, documents[row][column]
            beginning = known.setdefault((beginning, token), len(known) + 1)
            if target >= 0:
                followed[beginning][target] += 1
    nats = count = 0.0
    for targets in followed.values():
        total = sum(targets.values())
        nats -= sum(n * math.log(n / total) for n in targets.values())
        count += total
    return nats / count if count else 0.0
