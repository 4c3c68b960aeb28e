"""An encoder that tells classes of tokens apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.models.encoder.encoder import Encoder
from trainer.models.encoder.heads import HeadLayer, layer_before_classes
from trainer.models.encoder.token_classes_config import TokenClassesConfig
from trainer.models.layers.linear import Linear


class TokenHead(nn.Module):
    """A linear layer on each token, behind `transform` if there is one: hidden [rows, seq, hidden] → float32
    [rows, seq · classes].
    """

    def __init__(self, hidden: int, classes: int, transform: HeadLayer | None) -> None:
        super().__init__()
        self.transform = transform
        self.project = Linear(hidden, classes, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.project(x if self.transform is None else self.transform(x))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(1)


class TokenClasses(Encoder):
    """An encoder with a `TokenHead` in the place of the vocabulary's head; or any consecutive part of it, as
    in `Encoder`.
    """

    def __init__(self, cfg: TokenClassesConfig) -> None:
        super().__init__(cfg)
        self.head: nn.Module | None = TokenHead(  # type: ignore[assignment]
            cfg.hidden, cfg.classes, layer_before_classes(cfg)
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, *, positions: Tensor, documents: Tensor, **of_the_loss: Tensor
    ) -> Tensor:
        """Return hidden states [rows, seq, hidden] without a `head`; with one logits, float32
        [rows, seq · classes].

        x: token ids [rows, seq] with an `embed`, else hidden states.
        positions: [rows, seq], each token's position in its text.
        documents: [rows, seq], tokens attend to tokens of the same number; padding has a number of its own.
        of_the_loss: tensors that only the objective reads.
        """
        x = self.hidden_states(x, positions, documents)
        return x if self.head is None else self.head(x)
