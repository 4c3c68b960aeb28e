"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.objective import IGNORED, ModelInputs
from trainer.objectives.config import CausalLMConfig
from trainer.objectives.context import ObjectiveContext


class CausalLM:
    """The target of each token is the token that follows it.

    The model itself sums the negative log-likelihood, so that no stage ever holds or sends full logits.
    """

    def __init__(self, cfg: CausalLMConfig | None = None, context: ObjectiveContext | None = None) -> None:
        """Neither is needed: nothing is drawn, and the targets follow from the batch."""

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed `tokens`, and `following` as `targets`: IGNORED where no token follows (-1)."""
        following = tensors["following"]
        kwargs = {name: tensors[name] for name in ("positions", "documents") if name in tensors}
        kwargs["targets"] = following.masked_fill(following < 0, IGNORED)
        return ModelInputs(tensors["tokens"], kwargs, {"positions": 1, "targets": 1})

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return each row's summed nats over the targets that count, and their number."""
        return output, (inputs.kwargs["targets"] != IGNORED).sum(dim=1).to(torch.float32)
