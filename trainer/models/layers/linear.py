"""torch's linear layer and embedding, without first values on the meta device."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """torch's own, except that it draws no values on the meta device.

    Drawing there is slow Python that imports torch._dynamo, a second at every start. A run's first values
    come from the `ModelPlan`.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Embedding(nn.Embedding):
    """torch's own, with the same exception as `Linear`."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
