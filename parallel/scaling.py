"""Dynamic loss scaling for fp16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2)."""

from dataclasses import dataclass
from typing import Any


@dataclass
class LossScale:
    """Halved at an overflow, doubled after `interval` good steps. Powers of two, so scaling is exact."""

    value: float = 2.0**16
    interval: int = 2000
    good_steps: int = 0

    def update(self, overflow: bool) -> None:
        if overflow:
            self.value, self.good_steps = max(self.value / 2, 1.0), 0
            return
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.value, self.good_steps = min(self.value * 2, 2.0**24), 0

    def state(self) -> dict[str, Any]:
        return {"loss_scale": self.value, "good_steps": self.good_steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.value, self.good_steps = float(state["loss_scale"]), int(state["good_steps"])
