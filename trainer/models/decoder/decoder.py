"""The decoder-only language model."""

from __future__ import annotations

import math

from torch import Tensor, nn

from common.model_plan import Init, ModelPlan
from trainer.models.decoder.block import Block
from trainer.models.decoder.config import DecoderConfig
from trainer.models.layers.attention import KVCache, Shared, document_mask, resumed_mask
from trainer.models.layers.basic import Embedding, RMSNorm, RotaryTables
from trainer.models.layers.head import LMHead


class Decoder(nn.Module):
    """Embedding, blocks, final norm, language-model head; or any consecutive part of them.

    A pipeline stage is this module with `embed`, `norm`, `head` set to None and keys of `layers` deleted:
    what is left still runs, and its state_dict keeps the whole model's names. Parameters are left as torch's
    constructors make them: whoever builds the model draws them by `plan.init`.
    """

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        self.plan = decoder_plan(cfg)
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


def decoder_plan(cfg: DecoderConfig) -> ModelPlan:
    """How a Decoder is cut, sharded and drawn.

    Every matrix is normal with std 0.02 (`init_std`), and the projections that add to the residual stream are
    smaller by √(2 · layers), so that its variance does not grow with depth: GPT-2 (Radford et al. 2019,
    section 2.3). Norms start at one. Weight decay spares everything of one dimension.
    """
    residual_std = cfg.init_std / math.sqrt(2 * cfg.layers)

    def init(name: str, shape: tuple[int, ...]) -> Init:
        if len(shape) == 1:
            return Init("ones")
        return Init("normal", residual_std if name.endswith((".wo.weight", ".w2.weight")) else cfg.init_std)

    qk_norms = ("q_norm", "k_norm") if cfg.qk_norm else ()
    return ModelPlan(
        blocks="layers",
        first=("embed",),
        last=("norm", "head"),
        tensor=(
            ("embed", "vocab_embedding"),
            ("layers.*.attention_norm", "sequence"),
            ("layers.*.attention", "gather"),
            *((f"layers.*.attention.{name}", "column") for name in ("wq", "wk", "wv")),
            *((f"layers.*.attention.{name}", "sequence") for name in qk_norms),
            ("layers.*.attention.core", "attention_core"),
            ("layers.*.attention.wo", "row"),
            ("layers.*.mlp_norm", "sequence"),
            ("layers.*.mlp", "gather"),
            ("layers.*.mlp.w1", "column"),
            ("layers.*.mlp.w3", "column"),
            ("layers.*.mlp.w2", "row"),
            ("norm", "sequence"),
            ("head", "vocab_head"),
        ),
        tied=(("embed.weight", "head.weight"),) if cfg.tie_embeddings else (),
        init=init,
        no_decay=lambda name, shape: len(shape) == 1,
    )
