"""A held-out set without a target, such as a label, has no loss that could be the best."""

import math
from collections.abc import Iterator
from typing import Any

from parallel.engine import Evaluation
from trainer.evaluation.best import Best, figures_of
from trainer.evaluation.evaluate import Evaluator


class Unlabelled:
    name, text_bytes, corpus = "held", 0, None

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter([object()])


class NothingCounted:
    def evaluate(self, batches: Any, **kwargs: Any) -> Evaluation:
        list(batches)
        return Evaluation(0.0, 0.0, False)


def test_a_set_without_a_target_is_never_the_best() -> None:
    sets: list[Any] = [Unlabelled()]
    engine: Any = NothingCounted()
    found = Evaluator(sets, every=1)(engine)
    assert found is not None and math.isnan(found["held"].loss)
    assert not Best("loss", "held").add(1, figures_of(found))
