"""The decoder-only language model."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.models.decoder.block import Block
from trainer.models.decoder.config import DecoderConfig
from trainer.models.layers.attention import KVCache, Shared, document_mask, resumed_mask
from trainer.models.layers.basic import Embedding, RMSNorm, RotaryTables
from trainer.models.layers.head import LMHead


class Decoder(nn.Module):
    """Embedding, blocks, final norm, language-model head; or any consecutive part of them.

    A pipeline stage is this module with `embed`, `norm`, `head` set to None and keys of `layers` deleted:
    what is left still runs, and its state_dict keeps the whole model's names. Parameters are left as torch's
    constructors make them: the engine draws them by the config's `plan().init`.
    """

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        self.embed: Embedding | None = Embedding(cfg.vocab, cfg.hidden)
        self.layers = nn.ModuleDict({str(layer): Block(cfg) for layer in range(cfg.layers)})
        self.norm: RMSNorm | None = RMSNorm(cfg.hidden, cfg.norm_eps)
        self.head: LMHead | None = LMHead(cfg.hidden, cfg.vocab)
        self.rotary = RotaryTables(cfg.head_dim, cfg.rope_theta)
        if cfg.tie_embeddings:
            self.embed.weight = self.head.weight

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        targets: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x: token ids [batch, seq] where `embed` is there, else hidden states [batch, seq, hidden].

        positions [batch, seq]: each token's place for the rotation; counted from 0 if None. documents
        [batch, seq]: attention stays among equal numbers. targets [batch, seq]: -100 is not counted. cache:
        x continues the cached tokens, and joins them.

        Returns hidden states without a `head`; logits [batch, seq, vocab] without targets; else the summed
        negative log-likelihood in nats, float32, shape [1].
        """
        # Hidden states may be this rank's slice of the sequence; arrays of tokens are always whole.
        whole = next((a for a in (positions, documents, targets) if a is not None), x)
        if self.embed is not None:
            x = self.embed(x)
        shared = self._shared(x, whole.shape[1], positions, documents, cache)
        for key, block in self.layers.items():
            x = block(x, shared, None if cache is None else cache.layer(key))
        if self.norm is not None:
            x = self.norm(x)
        return x if self.head is None else self.head(x, targets)

    def _shared(
        self, x: Tensor, seq: int, positions: Tensor | None, documents: Tensor | None, cache: KVCache | None
    ) -> Shared:
        past = 0 if cache is None else cache.length
        if positions is not None:
            rotary = self.rotary.at(positions)
        else:
            cos, sin = self.rotary.upto(past + seq, x.device)
            rotary = cos[past:], sin[past:]
        if documents is not None:
            assert cache is None, "a cache holds one document a row"
            return Shared(rotary, document_mask(documents, x.dtype))
        return Shared(rotary, resumed_mask(seq, past, x.dtype, x.device) if past and seq > 1 else None)
