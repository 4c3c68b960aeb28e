"""One encoder for the two texts of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from trainer.models.encoder.pooled import PooledEncoder
from trainer.models.layers.masks import attention_mask
from trainer.models.layers.shared import Shared
from trainer.models.towers.head import TextHead
from trainer.models.towers.text_pair_config import TextPairConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TEXTS = 2


class TextPair(PooledEncoder):
    """An encoder whose rows are two texts, a half each, which do not see each other: float32 [rows, 2 ·
    embedding + learnt].
    """

    def __init__(self, cfg: TextPairConfig) -> None:
        super().__init__(cfg, TextHead(cfg.hidden, cfg.embedding, bias=False, learnt=cfg.learnt))

    def set_sequence_ranks(self, ranks: int) -> None:
        """Implements `common.module_interfaces.SharesSequence`."""
        super().set_sequence_ranks(ranks)
        if isinstance(self.head, TextHead):
            self.head.sequence_ranks = ranks

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
