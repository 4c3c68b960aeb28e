"""The decoder-only language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.models.decoder.block import Block
from trainer.models.decoder.config import DecoderConfig
from trainer.models.layers.attention import KVCache
from trainer.models.layers.head import LMHead
from trainer.models.layers.linear import Embedding
from trainer.models.layers.masks import attention_mask, padded_mask, resumed_mask
from trainer.models.layers.norm import norm
from trainer.models.layers.shared import RotaryTables, Shared, Stretch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Decoder(nn.Module):
    """Embedding, blocks, final norm, language-model head; or any consecutive part of them.

    A pipeline stage is this module with `embed`, `places`, `norm` or `head` set to None and keys of `layers`
    deleted: the rest still runs, and its state_dict keeps the whole model's names. Parameters have the values
    that torch's constructors give them; the engine draws them anew by the config's `plan().init`.
    """

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        learned = cfg.positions == "learned"
        self.embed: Embedding | None = Embedding(cfg.vocab, cfg.hidden)
        self.places: Embedding | None = Embedding(cfg.max_positions, cfg.hidden) if learned else None
        self.layers = nn.ModuleDict({str(layer): Block(cfg) for layer in range(cfg.layers)})
        self.norm: nn.Module | None = norm(cfg.norm, cfg.hidden, cfg.norm_eps)
        self.head: LMHead | None = LMHead(cfg.hidden, cfg.vocab, softcap=cfg.logit_softcap)
        self.sequence_ranks = 1
        self.rotary = None if learned else RotaryTables(cfg.head_width, cfg.rope_theta, _stretch(cfg))
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
        targets: Tensor | None = None,
        places: Tensor | None = None,
        prefix: Tensor | None = None,
        hits: Tensor | None = None,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states [batch, seq, hidden] without a `head`; with one, logits [batch, seq, vocab],
        or with targets each row's summed negative log-likelihood in nats, float32 [batch].

        x: token ids [batch, seq] with an `embed`, else hidden states [batch, seq, hidden].
        positions: [batch, seq], each token's position for the rotation; None: counted from 0.
        documents: [batch, seq], tokens attend to tokens of the same number; None: to all before them.
        targets: [batch, seq], `common.objective.IGNORED` where no loss is counted.
        places: [batch, places], the only places with targets, so that the head computes these alone; what is
            negative is none. None: all.
        prefix: [batch], so many tokens at the beginning of a row attend to each other; None: none do.
        hits: bool [batch, seq], filled with whether a target has the largest logit; None: not told.
        cache: the tokens that x continues; x is added to it.
        padding: [batch], with a cache: so many tokens before each row's first one mean nothing. None: none.
        """
        # Under tensor parallelism hidden states are this rank's part of the sequence; the others are whole.
        whole = next((a for a in (positions, documents, targets) if a is not None), x)
        seq, past = whole.shape[1], 0 if cache is None else cache.length
        if padding is not None:
            counted = torch.arange(past, past + seq, device=x.device)
            positions = (counted - padding[:, None]).clamp(min=0)
        if self.embed is not None:
            x = self.embed(x)
        if self.places is not None:
            counted = torch.arange(past, past + seq, device=x.device)
            x = x + self.places(counted[None] if positions is None else positions)
        assert documents is None or cache is None, "a cache holds one document a row"
        rotary = self._rotary(seq, past, positions, x.device)
        windows = {key: self.cfg.window_of(int(key)) for key in self.layers}
        shared = {
            window: Shared(rotary, self._mask(x, seq, past, documents, prefix, window, padding))
            for window in set(windows.values())
        }
        for key, block in self.layers.items():
            window = windows[key]
            x = block(x, shared[window], None if cache is None else cache.layer(key, window))
        if self.norm is not None:
            x = self.norm(x)
        if self.head is None:
            return x
        if places is not None and targets is not None:
            targets = targets.gather(1, places.clamp(min=0))
        return self.head(x, targets, hits, places)

    def _rotary(
        self, seq: int, past: int, positions: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        if self.rotary is None:
            return None
        if positions is not None:
            return self.rotary.at(positions)
        cos, sin = self.rotary.upto(past + seq, device)
        return cos[past:], sin[past:]

    def _mask(
        self,
        x: Tensor,
        seq: int,
        past: int,
        documents: Tensor | None,
        prefix: Tensor | None,
        window: int,
        padding: Tensor | None,
    ) -> Tensor | BlockMask | None:
        dropped = max(0, past - window + 1) if window else 0  # places that no new token sees
        if padding is not None:
            return padded_mask(seq, past - dropped, window, padding - dropped, x.dtype)
        if past:
            past -= dropped
            return resumed_mask(seq, past, window, x.dtype, x.device)
        return attention_mask(
            seq * self.sequence_ranks,
            documents=documents,
            window=window,
            prefix=prefix,
            dtype=x.dtype,
            device=x.device,
            explicit=bool(self.cfg.attention_softcap) and seq > 1,
        )


def _stretch(cfg: DecoderConfig) -> Stretch | None:
    if cfg.rope_scaling == "none":
        return None
    return Stretch(
        factor=cfg.rope_factor,
        slow_only=cfg.rope_scaling == "llama3",
        low=cfg.rope_low_frequency,
        high=cfg.rope_high_frequency,
        original=cfg.rope_original_positions,
    )
