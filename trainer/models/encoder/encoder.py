"""The encoder: BERT, ModernBERT and what lies between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.objective import IGNORED
from trainer.models.encoder.block import Block
from trainer.models.encoder.config import EncoderConfig
from trainer.models.encoder.heads import MaskedHead, NextSentence
from trainer.models.layers.linear import Embedding
from trainer.models.layers.masks import attention_mask
from trainer.models.layers.norm import norm
from trainer.models.layers.shared import RotaryTables, Shared

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Encoder(nn.Module):
    """Embeddings, blocks, final norm and heads; or any consecutive part of them.

    A pipeline stage is this module with some of the parts set to None and keys of `layers` deleted: the rest
    still runs, and its state_dict keeps the whole model's names. Parameters have the values that torch's
    constructors give them; the engine draws them anew by the config's `plan().init`.
    """

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        width, learned = cfg.hidden, cfg.positions == "learned"
        self.embed: Embedding | None = Embedding(cfg.vocab, width)
        self.position_embed: Embedding | None = Embedding(cfg.max_positions, width) if learned else None
        self.type_embed: Embedding | None = Embedding(cfg.token_types, width) if cfg.token_types else None
        self.embed_norm: nn.Module | None = norm(cfg.norm, width, cfg.norm_eps, cfg.biases)
        self.layers = nn.ModuleDict({str(n): Block(cfg, first=n == 0) for n in range(cfg.layers)})
        at_end = cfg.norm_place == "pre"
        self.norm: nn.Module | None = norm(cfg.norm, width, cfg.norm_eps, cfg.biases) if at_end else None
        self.next_sentence: NextSentence | None = (
            NextSentence(width, biases=cfg.biases) if cfg.next_sentence else None
        )
        self.head: MaskedHead | None = MaskedHead(
            width, cfg.vocab, norm_kind=cfg.norm, norm_eps=cfg.norm_eps, biases=cfg.biases
        )
        self.sequence_ranks = 1
        thetas = {window: cfg.rope_theta_local if window else cfg.rope_theta for window in self._windows()}
        self.rotary = {} if learned else {w: RotaryTables(cfg.head_width, t) for w, t in thetas.items()}
        if cfg.tie_embeddings:
            self.embed.weight = self.head.weight

    def set_sequence_ranks(self, ranks: int) -> None:
        """Implements `common.module_interfaces.SharesSequence`."""
        self.sequence_ranks = ranks

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        types: Tensor | None = None,
        targets: Tensor | None = None,
        places: Tensor | None = None,
        pooled: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states [batch, seq, hidden] without a `head`; with one, logits [batch, seq, vocab],
        or with targets each row's loss, float32 [batch]: the summed negative log-likelihood of its targets in
        nats, and with labels that of its label times the number of its targets. Divided by the number of
        targets, that is the mean over tokens plus the mean over rows.

        In evaluation (`eval()`) a row has further columns behind its loss, [batch, 2 or 4]: how many targets
        have the largest logit; with labels, the label's negative log-likelihood and whether it has the larger
        logit.

        x: token ids [batch, seq] with an `embed`, else hidden states [batch, seq, hidden].
        positions: [batch, seq], each token's position; None: counted from 0.
        documents: [batch, seq], tokens attend to tokens of the same number; padding has a number of its own.
            None: to all.
        types: [batch, seq], each token's type; None: 0.
        targets: [batch, places], `common.objective.IGNORED` where nothing is predicted.
        places: [batch, places], where the targets are; None: at each place in turn.
        pooled: [batch, 1], the place of the token that `labels` are told from.
        labels: [batch], 0 where the second sentence follows the first, 1 where not, IGNORED where not known.
        """
        x = self.hidden_states(x, positions, documents, types)
        if self.head is None:
            return x
        return self.head(x) if targets is None else self._loss(x, targets, places, pooled, labels)

    def hidden_states(
        self, x: Tensor, positions: Tensor | None, documents: Tensor | None, types: Tensor | None = None
    ) -> Tensor:
        """Return the hidden states before the heads, [batch, seq, hidden]; arguments as of `forward`."""
        # Under tensor parallelism hidden states are this rank's part of the sequence; the others are whole.
        seq = next((a for a in (positions, types, documents) if a is not None), x).shape[1]
        if self.embed is not None:
            x = self._embedded(x, positions, types)
        shared = {window: self._shared(x, seq, positions, documents, window) for window in self._windows()}
        for key, block in self.layers.items():
            x = block(x, shared[self.cfg.window_of(int(key))])
        return x if self.norm is None else self.norm(x)

    def _embedded(self, x: Tensor, positions: Tensor | None, types: Tensor | None) -> Tensor:
        assert self.embed is not None and self.embed_norm is not None
        first = torch.arange(x.shape[1], device=x.device)[None]
        x = self.embed(x)
        if self.position_embed is not None:
            x = x + self.position_embed(first if positions is None else positions)
        if self.type_embed is not None:
            x = x + self.type_embed(torch.zeros_like(first) if types is None else types)
        return self.embed_norm(x)

    def _loss(
        self,
        x: Tensor,
        targets: Tensor,
        places: Tensor | None,
        pooled: Tensor | None,
        labels: Tensor | None,
    ) -> Tensor:
        assert self.head is not None
        hits = None if self.training else torch.zeros_like(targets, dtype=torch.bool)
        loss = self.head(x, targets, hits, places)
        columns = [] if hits is None else [hits.sum(dim=1).to(loss.dtype)]
        if self.next_sentence is not None and labels is not None:
            told = self.next_sentence(x, pooled, labels)
            loss = loss + told[:, 0] * (targets != IGNORED).sum(dim=1)
            columns += told.unbind(dim=1)
        return loss if self.training else torch.stack((loss, *columns), dim=1)

    def _windows(self) -> set[int]:
        return {self.cfg.window_of(int(key)) for key in self.layers}

    def _shared(
        self, x: Tensor, seq: int, positions: Tensor | None, documents: Tensor | None, window: int
    ) -> Shared:
        rotary = None
        if self.rotary:
            tables = self.rotary[window]
            rotary = tables.upto(seq, x.device) if positions is None else tables.at(positions)
        mask: Tensor | BlockMask | None = attention_mask(
            seq * self.sequence_ranks,
            causal=False,
            documents=documents,
            window=window + 1 if window else 0,
            dtype=x.dtype,
            device=x.device,
        )
        return Shared(rotary, mask, causal=False)
