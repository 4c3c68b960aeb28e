"""What a model is made of, as plain data. Imports no torch.

A field states its key's meaning and limits in plain text; `trainer.config.keys` says how, and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal


@dataclass
class DecoderConfig:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    `ffn_hidden` of 8/3 · hidden gives the three SwiGLU matrices the parameters of a classic 4 · hidden pair
    (Shazeer 2020, arXiv:2002.05202). `qk_norm` is Dehghani et al.'s (2023, arXiv:2302.05442).
    """

    model_class: ClassVar[str] = "trainer.models.decoder.decoder:Decoder"  # imported when a model is built

    kind: Annotated[Literal["decoder"], "which model this is"] = "decoder"
    layers: Annotated[int, "blocks", "≥ 1"] = 4
    hidden: Annotated[int, "width; an even multiple of heads", "≥ 1"] = 256
    heads: Annotated[int, "query heads, a multiple of kv_heads", "≥ 1"] = 4
    kv_heads: Annotated[int, "key-value heads; 0: one for each query head", "≥ 0"] = 0
    ffn_hidden: Annotated[
        int, "width of the feed-forward layer; 0: 8/3 · hidden, rounded up to a multiple of 64", "≥ 0"
    ] = 0
    vocab: Annotated[int, "tokens the model knows: at least the tokenizer's", "≥ 1", "in tokens"] = 4096
    tie_embeddings: Annotated[bool, "embedding and head are one matrix"] = False
    qk_norm: Annotated[bool, "normalise queries and keys, head by head"] = False
    # The bounds are float32's, in which they are used: beyond, they are 0 or infinite.
    rope_theta: Annotated[
        float, "base of the rotary positions' frequencies", "> 0", "≥ 1.2e-38", "≤ 3.4e38"
    ] = 10000.0
    norm_eps: Annotated[
        float, "added to the mean square under RMSNorm's root", "> 0", "≥ 1.2e-38", "≤ 3.4e38"
    ] = 1e-5
    init_std: Annotated[
        float,
        "standard deviation of the first weights; residual projections have less",
        "> 0",
        "≥ 1.2e-38",
        "≤ 3.4e38",
    ] = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def ffn_width(self) -> int:
        return self.ffn_hidden or -(-8 * self.hidden // (3 * 64)) * 64

    def check(self) -> None:
        """Raise a one-line ValueError naming the first field that does not go with another."""
        if self.hidden % self.heads:
            raise ValueError(f"model.hidden: {self.hidden} is not divisible by model.heads {self.heads}")
        if self.head_dim % 2:
            raise ValueError(
                f"model.hidden: {self.hidden} / model.heads {self.heads} = {self.head_dim} a head; "
                "rotary positions need an even number"
            )
        if self.heads % self.key_value_heads:
            raise ValueError(f"model.heads: {self.heads} is not divisible by model.kv_heads {self.kv_heads}")
