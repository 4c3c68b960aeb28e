"""An encoder that pools the hidden states of texts."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.models.encoder.encoder import Encoder
from trainer.models.encoder.pooled_config import PooledEncoderConfig
from trainer.models.towers.head import TextHead


class PooledEncoder(Encoder):
    """An encoder with a `TextHead` in the place of the vocabulary's head; or any consecutive part of it, as
    in `Encoder`.
    """

    def __init__(self, cfg: PooledEncoderConfig, head: TextHead) -> None:
        super().__init__(cfg)
        self.head: nn.Module | None = head  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self, x: Tensor, *, positions: Tensor, documents: Tensor, weights: Tensor, **of_the_loss: Tensor
    ) -> Tensor:
        """Return hidden states [rows, seq, hidden] without a `head`; with one what `TextHead` gives, float32.

        x: token ids [rows, seq] with an `embed`, else hidden states.
        positions: [rows, seq], each token's position in its text.
        documents: [rows, seq], tokens attend to tokens of the same number in their text; padding has a number
            of its own.
        weights: [rows, texts, seq], of each token in what its text becomes.
        of_the_loss: tensors that only the objective reads.
        """
        x = self.hidden_states(x, positions, documents)
        return x if self.head is None else self.head(x, weights)
