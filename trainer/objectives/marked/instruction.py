"""Next-token prediction where the assistant speaks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.objective import IGNORED, ModelInputs
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.marked.config import InstructionConfig


class Instruction:
    """The target of each token is the token that follows it, if that one has a mark.

    A row is one conversation with its padding behind it. Causal attention does not see what is behind, so
    nothing has to hide the padding.
    """

    def __init__(self, cfg: InstructionConfig, context: ObjectiveContext) -> None:
        """Neither is needed: nothing is drawn, and the targets follow from the batch."""

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed `tokens`, and `following` as `targets`: IGNORED where the token that follows has no mark."""
        targets = tensors["following"].masked_fill(tensors["following_marks"] == 0, IGNORED)
        return ModelInputs(tensors["tokens"], {"targets": targets}, {"targets": 1})

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return each row's summed nats over the targets that count, and their number."""
        return output, (inputs.kwargs["targets"] != IGNORED).sum(dim=1).to(torch.float32)
