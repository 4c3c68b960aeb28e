"""What an encoder predicts: tokens at given places, and whether one sentence follows another; and the layer
that may stand before classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.objective import IGNORED
from trainer.models.encoder.pooled_config import ClassesConfig
from trainer.models.layers.head import LMHead, at_places
from trainer.models.layers.linear import Linear
from trainer.models.layers.norm import norm


class HeadLayer(nn.Module):
    """A layer before the last one, of any shape [..., hidden]: norm(GELU(dense(x))), as in BERT's head for
    masked tokens and before ModernBERT's classes; or without a norm tanh(dense(x)), BERT's pooler.
    """

    def __init__(self, hidden: int, *, normed: nn.Module | None, biases: bool) -> None:
        super().__init__()
        self.dense = Linear(hidden, hidden, bias=biases)
        self.norm = normed

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(x)
        return torch.tanh(x) if self.norm is None else self.norm(F.gelu(x))


def layer_before_classes(cfg: ClassesConfig) -> HeadLayer | None:
    """Return what `head_layer` asks for."""
    if cfg.head_layer == "none":
        return None
    normed = norm(cfg.norm, cfg.hidden, cfg.norm_eps, cfg.biases) if cfg.head_layer == "gelu" else None
    return HeadLayer(cfg.hidden, normed=normed, biases=cfg.biases)


class MaskedHead(LMHead):
    """A layer with GELU and a norm, then the vocabulary: BERT's head for masked tokens.

    The layer is of the few hidden states that are predicted alone, where their places are given.
    """

    def __init__(self, hidden: int, vocab: int, *, norm_kind: str, norm_eps: float, biases: bool) -> None:
        super().__init__(hidden, vocab, bias=True)
        self.transform = HeadLayer(hidden, normed=norm(norm_kind, hidden, norm_eps, biases), biases=biases)

    def prepared(self, hidden: Tensor) -> Tensor:
        """Return norm(GELU(dense(hidden))), of the same shape."""
        return self.transform(hidden)  # type: ignore[no-any-return]


class NextSentence(nn.Module):
    """From one hidden state of a row: whether the row's second sentence follows its first (BERT's pooler and
    classifier). Class 0: it does; class 1: it is from elsewhere.
    """

    def __init__(self, hidden: int, *, biases: bool) -> None:
        super().__init__()
        self.pooler = Linear(hidden, hidden, bias=biases)
        self.classifier = Linear(hidden, 2, bias=biases)

    def forward(self, hidden: Tensor, place: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """hidden [batch, seq, hidden] → logits [batch, 2]; with labels [batch] → [batch, 2]: the negative
        log-likelihood in nats and whether the label has the larger logit, both 0 where the label is IGNORED
        or the place negative.

        place: of the hidden state, [batch, 1]; None: the first.
        """
        pooled = hidden[:, 0] if place is None else at_places(hidden, place)[:, 0]
        logits = self.classifier(torch.tanh(self.pooler(pooled)))
        if labels is None:
            return logits
        if place is not None:
            labels = labels.masked_fill(place[:, 0] < 0, IGNORED)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(exact, labels, ignore_index=IGNORED, reduction="none")
        return torch.stack((nll, (exact.argmax(dim=1) == labels).to(nll.dtype)), dim=1)
