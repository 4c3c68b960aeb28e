"""What a decoder is made of, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from common.model_plan import ModelPlan
from trainer.models.config import Parts
from trainer.models.decoder.plan import decoder_plan


@dataclass
class DecoderConfig:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    `ffn_hidden` of 8/3 · hidden gives the three SwiGLU matrices the parameters of a classic 4 · hidden pair
    (Shazeer 2020, arXiv:2002.05202). `qk_norm` is Dehghani et al.'s (2023, arXiv:2302.05442).

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.decoder.decoder:Decoder"

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
    # These numbers are used in float32: beyond its range they would become 0 or infinite.
    rope_theta: Annotated[
        float, "base of the rotary positions' frequencies", "> 0", "≥ 1.2e-38", "≤ 3.4e38"
    ] = 10000.0
    norm_eps: Annotated[
        float, "added to the mean square under RMSNorm's root", "> 0", "≥ 1.2e-38", "≤ 3.4e38"
    ] = 1e-5
    init_std: Annotated[
        float,
        "standard deviation of the first weights; projections that add to the residual stream have a smaller "
        "one",
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
        if self.hidden % self.heads:
            raise ValueError(f"model.hidden: {self.hidden} is not divisible by model.heads {self.heads}")
        if self.head_dim % 2:
            raise ValueError(
                f"model.hidden: {self.hidden} / model.heads {self.heads} = {self.head_dim} a head; "
                "rotary positions need an even number"
            )
        if self.heads % self.key_value_heads:
            raise ValueError(f"model.heads: {self.heads} is not divisible by model.kv_heads {self.kv_heads}")

    def check_layout(self, *, tp: int, cp: int) -> None:
        heads = {"heads": self.heads, "kv_heads": self.key_value_heads}
        for key, size in (heads | {"ffn_hidden": self.ffn_width, "vocab": self.vocab}).items():
            if size % tp:
                raise ValueError(f"model.{key}={size} is not divisible by parallel.tp={tp}")
        for key, size in heads.items():
            if size % (tp * cp):
                raise ValueError(
                    f"model.{key}={size} is not divisible by parallel.tp={tp} · parallel.cp={cp}"
                )

    def plan(self) -> ModelPlan:
        return decoder_plan(
            layers=self.layers, init_std=self.init_std, qk_norm=self.qk_norm, tied=self.tie_embeddings
        )

    def block_counts(self) -> dict[str, int]:
        return {"model.layers": self.layers}

    def parameters(self) -> Parts:
        """A tied embedding is counted once, in `last`. Where embedding and head are on different pipeline
        stages, the first stage holds a copy that is not counted.
        """
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        table = self.vocab * self.hidden
        return Parts(
            first=0 if self.tie_embeddings else table,
            block=self._block_matrices + norms,
            blocks=self.layers,
            last=table + self.hidden,
        )

    def sizes_to_lower(self) -> tuple[str, str]:
        parameters = self.parameters()
        tables = parameters.first + parameters.last
        if tables > self.layers * parameters.block and self.vocab > self.hidden:
            name = "vocab"
        else:
            name = max(("hidden", "layers", "ffn_hidden"), key=lambda name: getattr(self, name))
        return f"model.{name}={getattr(self, name)}", f"model.layers={self.layers}"

    def training_flops(self, seq_len: int) -> Parts:
        """Matrix products and attention only: norms, rotations, activations and the embedding look-up are
        left out. Attention counts the full seq_len × seq_len scores although half are masked. This is PaLM's
        convention (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), so figures compare with others'.

        A token costs 6 · the matrices' parameters + 12 · hidden · seq_len in a block, and 6 · hidden · vocab
        in the head.
        """
        return Parts(
            first=0,
            block=seq_len * (6 * self._block_matrices + 12 * self.hidden * seq_len),
            blocks=self.layers,
            last=seq_len * 6 * self.hidden * self.vocab,
        )

    def hidden_elements(self, seq_len: int) -> int:
        return seq_len * self.hidden

    def attention_elements(self, seq_len: int) -> int:
        return seq_len * self.head_dim * 2 * (self.heads + self.key_value_heads)

    @property
    def _block_matrices(self) -> int:
        """Parameters of a block's matrices."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.key_value_heads)
        return attention + 3 * self.hidden * self.ffn_width
