"""Held-out evaluation inside the run: loss in nats per token and, tokenizer-free, in bits per byte of
text.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from data.stream.heldout import HeldoutLoader
from parallel.engine import Engine
from trainer.evaluation.answers import Texts
from trainer.evaluation.bias import Bias
from trainer.evaluation.probes import Probes
from trainer.objectives.config import CausalLMConfig, ObjectiveConfig
from trainer.ranks import Ranks
from trainer.watch.phases import EVALUATION, Phases

# How many batches of a rank an evaluation goes on for after a request to stop, times the pipeline's length:
# in a long one they take no more time, and with fewer it would be filling and draining most of the time.
BATCHES = 16


def shown(figure: float) -> str:
    """A figure for people; a count is an integer."""
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.4f}"


@dataclass(frozen=True)
class HeldoutResult:
    """`loss`: nats per target token; NaN where the set has no target, such as a label. `bits_per_byte`: total
    nats / ln 2 / UTF-8 bytes of the documents evaluated; NaN where those are not known (see
    `HeldoutLoader.text_bytes`), or the loss is not that of the text (`ObjectiveConfig.scores_text`).
    `measures`: the further figures of the objective, such as an accuracy, by name.
    """

    loss: float
    bits_per_byte: float
    measures: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, float]:
        """Return the figures that are known, by name: what has no bytes of text has no bits per byte."""
        found = {"loss": self.loss}
        if self._has_bits:
            found["bits_per_byte"] = self.bits_per_byte
        return found | self.measures

    @property
    def _has_bits(self) -> bool:
        return math.isnan(self.loss) or not math.isnan(self.bits_per_byte)

    def __str__(self) -> str:
        bits = f"{self.bits_per_byte:.4f} bits per byte, " if self._has_bits else ""
        further = (f", {name} {shown(value)}" for name, value in self.measures.items())
        return f"{bits}loss {self.loss:.4f}{''.join(further)}"


class Evaluator:
    """Evaluates every held-out set on the engine.

    sets: cut by document, so that the figures do not depend on the batch, the layout or the training stream.
    every: steps between two evaluations; there is one after the last step besides. 0: only that one.
    done: the last step whose evaluation is in the record.
    objective: says what the figures are made of, and whether the loss is the negative log-likelihood of the
        text; None: a language model's.
    pp: ranks of a pipeline.
    probes: measures the biases that each evaluation tells beside the sets' figures.
    texts: gives the figures of a set that need its texts.
    ranks: an error in reading on one rank is raised on all: see `Ranks.together`.
    phases: told of each part of an evaluation, `BATCHES` × pp batches.
    """

    def __init__(
        self,
        sets: Sequence[HeldoutLoader],
        *,
        every: int,
        done: int = 0,
        objective: ObjectiveConfig | None = None,
        pp: int = 1,
        probes: Probes = dict,
        texts: Texts = lambda heldout: {},
        ranks: Ranks | None = None,
        phases: Phases | None = None,
    ) -> None:
        self._phases = phases or Phases()
        self.sets = sets
        self.every = every
        self.done = done
        self._objective = objective or CausalLMConfig()
        self._together = BATCHES * pp
        self._probes, self._texts = probes, texts
        self.bias: dict[str, Bias] = {}
        self._ranks = ranks or Ranks()

    def due(self, step: int, *, last: bool) -> bool:
        """Whether an evaluation follows this step and is not in the record; `every` 0: only at the last."""
        now = last or (self.every > 0 and step % self.every == 0)
        return bool(self.sets) and step > self.done and now

    def __call__(
        self, engine: Engine, stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, HeldoutResult] | None:
        """Return name → result of each held-out set, or None where some rank was asked to stop meanwhile: the
        same on every rank. The ranks agree on a request to stop every `BATCHES` × pp batches. The attribute
        `bias` then has the figures of the probes by name.
        """
        results = {}
        for heldout in self.sets:
            loss_sum = count = 0.0
            measures: dict[str, tuple[float, float]] = {}
            batches: Iterator[Any] = iter(heldout)
            for first in range(0, len(heldout), self._together):
                with self._phases.main.inside(EVALUATION, detail=heldout.name):
                    read = self._ranks.together(partial(self._read, batches))
                    last = first + self._together >= len(heldout)
                    part = engine.evaluate(read, stop=stopping(), last=last)
                if part.stop:
                    return None
                loss_sum += part.loss_sum
                count += part.count
                for name, (more, of_more) in part.measures.items():
                    total, of_total = measures.get(name, (0.0, 0.0))
                    measures[name] = (total + more, of_total + of_more)
            with self._phases.main.inside(EVALUATION, detail=heldout.name):
                further = self._texts(heldout)
            results[heldout.name] = HeldoutResult(
                loss=loss_sum / count if count else math.nan,
                bits_per_byte=self._bits_per_byte(loss_sum, heldout),
                measures={**further, **self._objective.figures(measures)},
            )
        with self._phases.main.inside(EVALUATION, detail="bias"):
            self.bias = self._probes()
        return results

    def _bits_per_byte(self, loss_sum: float, heldout: HeldoutLoader) -> float:
        known = self._objective.scores_text and heldout.text_bytes
        return loss_sum / math.log(2.0) / heldout.text_bytes if known else math.nan

    def _read(self, batches: Iterator[Any]) -> list[Any]:
        return list(islice(batches, self._together))
