"""One encoder for the two texts of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from trainer.models.encoder.encoder import Encoder
from trainer.models.layers.masks import attention_mask
from trainer.models.layers.shared import Shared
from trainer.models.towers.head import TextHead
from trainer.models.towers.text_pair_config import TextPairConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TEXTS = 2


class TextPair(Encoder):
    """An encoder whose rows are two texts, a half each, which do not see each other; or any consecutive part
    of it, as in `Encoder`.
    """

    def __init__(self, cfg: TextPairConfig) -> None:
        super().__init__(cfg)
        head = TextHead(cfg.hidden, cfg.embedding, bias=False, learnt=cfg.learnt)
        self.head: nn.Module | None = head  # type: ignore[assignment]

    def set_sequence_ranks(self, ranks: int) -> None:
        """Implements `common.module_interfaces.SharesSequence`."""
        super().set_sequence_ranks(ranks)
        if isinstance(self.head, TextHead):
            self.head.sequence_ranks = ranks

    def forward(  # type: ignore[override]
        self, x: Tensor, *, positions: Tensor, documents: Tensor, weights: Tensor
    ) -> Tensor:
        """Return hidden states [rows, seq, hidden] without a `head`; with one [rows, 2 · embedding + learnt],
        float32.

        x: token ids [rows, seq] with an `embed`, else hidden states.
        positions: [rows, seq], each token's position in its text.
        documents: [rows, seq], tokens attend to tokens of the same number in their half; padding has a number
            of its own.
        weights: [rows, 2, seq], of each token in either text's embedding.
        """
        if self.embed is not None:
            x = self._embedded(x, positions, None)
        shared = {
            window: self._shared(x, positions.shape[1], positions, documents, window)
            for window in self._windows()
        }
        for key, block in self.layers.items():
            x = block(x, shared[self.cfg.window_of(int(key))])
        if self.norm is not None:
            x = self.norm(x)
        return x if self.head is None else self.head(x, weights)

    def _shared(
        self, x: Tensor, seq: int, positions: Tensor | None, documents: Tensor | None, window: int
    ) -> Shared:
        assert positions is not None and documents is not None
        mask: Tensor | BlockMask | None = attention_mask(
            seq * self.sequence_ranks // TEXTS,
            causal=False,
            documents=documents.unflatten(1, (TEXTS, -1)).flatten(0, 1),
            window=window + 1 if window else 0,
            dtype=x.dtype,
            device=x.device,
        )
        rotary = self.rotary[window].at(positions) if self.rotary else None
        return Shared(rotary, mask, causal=False, views=TEXTS)
