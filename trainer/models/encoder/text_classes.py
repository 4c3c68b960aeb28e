"""An encoder that tells classes of texts apart."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.models.encoder.encoder import Encoder
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.towers.head import TextHead


class TextClasses(Encoder):
    """An encoder and a linear layer on its pooled hidden states; or any consecutive part of it, as in
    `Encoder`.
    """

    def __init__(self, cfg: TextClassesConfig) -> None:
        super().__init__(cfg)
        head = TextHead(cfg.hidden, cfg.classes, bias=True, learnt="none")
        self.head: nn.Module | None = head  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self, x: Tensor, *, positions: Tensor, documents: Tensor, weights: Tensor, **of_the_loss: Tensor
    ) -> Tensor:
        """Return hidden states [rows, seq, hidden] without a `head`; with one float32 logits [rows, classes].

        x: token ids [rows, seq] with an `embed`, else hidden states.
        positions: [rows, seq], each token's position.
        documents: [rows, seq], tokens attend to tokens of the same number; padding has a number of its own.
        weights: [rows, 1, seq], of each token in the pooled hidden state.
        of_the_loss: tensors that only the objective reads.
        """
        seq = positions.shape[1]
        if self.embed is not None:
            x = self._embedded(x, positions, None)
        shared = {window: self._shared(x, seq, positions, documents, window) for window in self._windows()}
        for key, block in self.layers.items():
            x = block(x, shared[self.cfg.window_of(int(key))])
        if self.norm is not None:
            x = self.norm(x)
        return x if self.head is None else self.head(x, weights)
