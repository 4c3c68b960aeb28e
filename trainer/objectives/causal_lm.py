"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.objectives.base import ModelInputs

IGNORED = -100


class CausalLM:
    """The model itself sums the negative log-likelihood, so that no stage ever holds or sends full logits."""

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        return ModelInputs(
            tensors["tokens"], {name: tensor for name, tensor in tensors.items() if name != "tokens"}
        )

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Summed nats over the targets that count, and their number."""
        count = (inputs.kwargs["targets"] != IGNORED).sum()
        return output.sum(), count.to(torch.float32)
