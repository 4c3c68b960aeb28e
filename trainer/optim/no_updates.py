"""The optimiser of an engine that only evaluates: it holds nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor


class NoUpdates:
    """Takes the place of an optimiser where no step is taken: no state, so no memory beside the weights.

    Implements `parallel.engine.LocalOptimizer`.
    """

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = []
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        self.grad_scale: Tensor | None = None
        self.steps = 0

    def step(self) -> None:
        raise AssertionError("an engine that was built to evaluate takes no steps")
