"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.objective import IGNORED, ModelInputs


class CausalLM:
    """The model itself sums the negative log-likelihood, so that no stage ever holds or sends full logits."""

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        kwargs = {name: tensor for name, tensor in tensors.items() if name not in ("tokens", "source")}
        return ModelInputs(tensors["tokens"], kwargs)

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Each row's summed nats over the targets that count, and their number."""
        return output, (inputs.kwargs["targets"] != IGNORED).sum(dim=1).to(torch.float32)
