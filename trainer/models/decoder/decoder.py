"""The decoder-only language model."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.models.decoder.block import Block
from trainer.models.decoder.config import DecoderConfig
from trainer.models.layers.attention import KVCache, document_mask, resumed_mask
from trainer.models.layers.head import LMHead
from trainer.models.layers.linear import Embedding
from trainer.models.layers.norm import RMSNorm
from trainer.models.layers.shared import RotaryTables, Shared


class Decoder(nn.Module):
    """Embedding, blocks, final norm, language-model head; or any consecutive part of them.

    A pipeline stage is this module with `embed`, `norm` or `head` set to None and keys of `layers` deleted:
    the rest still runs, and its state_dict keeps the whole model's names. Parameters have the values that
    torch's constructors give them; the engine draws them anew by the config's `plan().init`.
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
        """Return hidden states [batch, seq, hidden] without a `head`; with one, logits [batch, seq, vocab],
        or with targets each row's summed negative log-likelihood in nats, float32 [batch].

        x: token ids [batch, seq] with an `embed`, else hidden states [batch, seq, hidden].
        positions: [batch, seq], each token's position for the rotation; None: counted from 0.
        documents: [batch, seq], tokens attend to tokens of the same number; None: to all before them.
        targets: [batch, seq], `common.objective.IGNORED` where no loss is counted.
        cache: the tokens that x continues; x is added to it.
        """
        # Under tensor parallelism hidden states are this rank's part of the sequence; the others are whole.
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
