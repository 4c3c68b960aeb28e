"""What a model is made of, as plain data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class DecoderConfig:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    `kv_heads` 0 means one key-value head for each query head. `ffn_hidden` 0 means 8/3 · hidden rounded up
    to a multiple of 64, which gives the three SwiGLU matrices the parameters of a classic 4 · hidden pair
    (Shazeer 2020, arXiv:2002.05202). `qk_norm` normalises queries and keys head by head (Dehghani et al.
    2023, arXiv:2302.05442). `init_std` is the standard deviation of every matrix but the residual
    projections; see `decoder_plan`.
    """

    kind: str = "decoder"
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 0
    ffn_hidden: int = 0
    vocab: int = 4096
    tie_embeddings: bool = False
    qk_norm: bool = False
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    init_std: float = 0.02

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
        """Raise a one-line ValueError naming the first field that cannot be."""
        for name in ("layers", "hidden", "heads", "vocab"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}: must be at least 1, is {getattr(self, name)}")
        for name in ("kv_heads", "ffn_hidden"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name}: must be 0 (automatic) or more, is {getattr(self, name)}")
        for name in ("rope_theta", "norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name}: must be above 0, is {getattr(self, name)}")
        if self.hidden % self.heads:
            raise ValueError(f"model.hidden: {self.hidden} is not divisible by model.heads {self.heads}")
        if self.head_dim % 2:
            raise ValueError(
                f"model.hidden: {self.hidden} / model.heads {self.heads} = {self.head_dim} a head; "
                "rotary positions need an even number"
            )
        if self.heads % self.key_value_heads:
            raise ValueError(f"model.heads: {self.heads} is not divisible by model.kv_heads {self.kv_heads}")
