"""What a decoder is made of, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from common.model_plan import ModelPlan
from trainer.models import sizes
from trainer.models.config import InitFrom, Parts
from trainer.models.decoder.plan import decoder_plan
from trainer.models.keys import (
    GlobalEvery,
    InitStd,
    Layers,
    MaxPositions,
    MaybeGatedFFNHidden,
    NormEps,
    RopeTheta,
    TieEmbeddings,
    Vocab,
)

Norm = Literal["rms", "layer"]
Activation = Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh"]
Biases = Literal["none", "qkv", "all"]
Positions = Literal["rope", "learned"]
RopeScaling = Literal["none", "linear", "llama3"]


@dataclass
class DecoderConfig:
    """A decoder-only transformer. The defaults are Llama's: RMSNorm, rotary positions, SwiGLU, no biases.

    `ffn_hidden` of 8/3 · hidden gives the three SwiGLU matrices the parameters of a classic 4 · hidden pair
    (Shazeer 2020, arXiv:2002.05202). `qk_norm` is Dehghani et al.'s (2023, arXiv:2302.05442), a window
    Mistral's (Jiang et al. 2023, arXiv:2310.06825), soft caps Gemma 2's (2024, arXiv:2408.00118).
    docs/models.md has the keys of each published family.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.decoder.decoder:Decoder"
    offers: ClassVar[frozenset[str]] = frozenset({"next token", "prefix", "hits"})

    kind: Annotated[Literal["decoder"], "which model this is"] = "decoder"
    layers: Layers = 4
    hidden: Annotated[int, "width; a multiple of heads where head_dim is 0", "≥ 1"] = 256
    heads: Annotated[int, "query heads, a multiple of kv_heads", "≥ 1"] = 4
    kv_heads: Annotated[int, "key-value heads; 0: one for each query head", "≥ 0"] = 0
    head_dim: Annotated[int, "width of a head; 0: hidden / heads", "≥ 0"] = 0
    ffn_hidden: MaybeGatedFFNHidden = 0
    vocab: Vocab = 4096
    tie_embeddings: TieEmbeddings = False
    norm: Annotated[Norm, "RMSNorm, or LayerNorm with a bias"] = "rms"
    activation: Annotated[
        Activation, "of the feed-forward layer; …glu: gated; …_tanh: GELU by its approximation with tanh"
    ] = "swiglu"
    attention_bias: Annotated[
        Biases, "biases of the projections to queries, keys and values, or of the one after attention too"
    ] = "none"
    mlp_bias: Annotated[bool, "biases in the feed-forward layer"] = False
    qk_norm: Annotated[bool, "normalise queries and keys, head by head"] = False
    positions: Annotated[Positions, "rotary, or a learned vector for each position"] = "rope"
    max_positions: MaxPositions = 1024
    rope_theta: RopeTheta = 10000.0
    rope_scaling: Annotated[
        RopeScaling,
        "how rotary frequencies are stretched for longer texts: all of them, or the slow ones as in Llama 3",
        "needs model.positions=rope",
    ] = "none"
    rope_factor: Annotated[float, "what rope_scaling divides frequencies by", "≥ 1", "≤ 3.4e38"] = 8.0
    rope_low_frequency: Annotated[
        float, "llama3: a frequency of fewer turns in rope_original_positions is divided", "> 0", "≤ 3.4e38"
    ] = 1.0
    rope_high_frequency: Annotated[
        float, "llama3: a frequency of more turns in rope_original_positions is kept", "> 0", "≤ 3.4e38"
    ] = 4.0
    rope_original_positions: Annotated[
        int, "llama3: the sequence length before frequencies were stretched", "≥ 1", "in tokens"
    ] = 8192
    window: Annotated[
        int, "a token attends to so many tokens, itself included; 0: to all before it", "≥ 0", "in tokens"
    ] = 0
    global_every: GlobalEvery = 0
    attention_softcap: Annotated[
        float, "attention scores s become c · tanh(s / c); 0: they do not", "≥ 0", "≤ 3.4e38"
    ] = 0.0
    logit_softcap: Annotated[float, "the same for the logits", "≥ 0", "≤ 3.4e38"] = 0.0
    norm_eps: NormEps = 1e-5
    init_std: InitStd = 0.02
    init_from: InitFrom = ""

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden // self.heads

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layer has three matrices, not two."""
        return self.activation in sizes.GATED

    @property
    def ffn_width(self) -> int:
        return sizes.ffn_width(self.ffn_hidden, self.hidden, gated=self.is_gated)

    def window_of(self, layer: int) -> int:
        """Return how many tokens a token attends to in block `layer`; 0: all before it."""
        is_global = self.global_every and layer % self.global_every == 0
        return 0 if is_global else self.window

    def check(self) -> None:
        if not self.head_dim and self.hidden % self.heads:
            raise ValueError(
                f"model.hidden: {self.hidden} is not divisible by model.heads {self.heads}: change one, or "
                "set model.head_dim"
            )
        if self.positions == "rope" and self.head_width % 2:
            given = f"model.head_dim: {self.head_dim}"
            if not self.head_dim:
                given = f"model.hidden: {self.hidden} / model.heads {self.heads} = {self.head_width} a head"
            raise ValueError(f"{given}; model.positions=rope needs an even number")
        if self.heads % self.key_value_heads:
            raise ValueError(f"model.heads: {self.heads} is not divisible by model.kv_heads {self.kv_heads}")
        if self.rope_scaling == "llama3" and self.rope_low_frequency >= self.rope_high_frequency:
            raise ValueError(
                f"model.rope_low_frequency: {self.rope_low_frequency:g} is not below "
                f"model.rope_high_frequency {self.rope_high_frequency:g}"
            )
        if self.global_every and not self.window:
            raise ValueError(
                f"model.global_every: {self.global_every} needs model.window, the tokens that the other "
                "blocks attend to"
            )

    def check_seq_len(self, seq_len: int) -> None:
        if self.positions == "learned":
            sizes.check_positions(seq_len, self.max_positions)

    def check_layout(self, *, tp: int, cp: int) -> None:
        heads = {"heads": self.heads, "kv_heads": self.key_value_heads}
        sizes.check_split(heads | {"ffn_hidden": self.ffn_width, "vocab": self.vocab}, tp=tp)
        sizes.check_heads(heads, tp=tp, cp=cp)

    def positions_of_row(self, seq_len: int) -> int:
        return seq_len

    def row_unit(self, seq_len: int) -> tuple[str, int]:
        return "tokens", seq_len

    def plan(self) -> ModelPlan:
        return decoder_plan(
            layers=self.layers,
            hidden=self.hidden,
            init_std=self.init_std,
            qk_norm=self.qk_norm,
            gated=self.is_gated,
            learned_positions=self.positions == "learned",
            tied=self.tie_embeddings,
        )

    def block_counts(self) -> dict[str, int]:
        return {"model.layers": self.layers}

    def parameters(self) -> Parts:
        """A tied embedding is counted once, in `last`. Where embedding and head are on different pipeline
        stages, the first stage holds a copy that is not counted.
        """
        norm = self.hidden * (2 if self.norm == "layer" else 1)
        vectors = 2 * norm + (2 * self.head_width if self.qk_norm else 0)
        if self.attention_bias != "none":
            vectors += self.head_width * (self.heads + 2 * self.key_value_heads)
        if self.attention_bias == "all":
            vectors += self.hidden
        if self.mlp_bias:
            vectors += self.ffn_width * (2 if self.is_gated else 1) + self.hidden
        table = self.vocab * self.hidden
        places = self.max_positions * self.hidden if self.positions == "learned" else 0
        return Parts(
            first=places if self.tie_embeddings else table + places,
            block=self._block_matrices + vectors,
            blocks=self.layers,
            last=table + norm,
        )

    def sizes_to_lower(self) -> tuple[str, str]:
        return sizes.sizes_to_lower(self)

    def training_flops(self, seq_len: int) -> Parts:
        """Matrix products and attention only: norms, rotations, activations and the embedding look-up are
        left out. Attention counts the full seq_len × seq_len scores although half are masked, and more with
        a window. This is PaLM's convention (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), so figures
        compare with others'.

        A token costs 6 · the matrices' parameters + 12 · heads · head_dim · seq_len in a block, and
        6 · hidden · vocab in the head.
        """
        return Parts(
            first=0,
            block=seq_len * (6 * self._block_matrices + 12 * self.heads * self.head_width * seq_len),
            blocks=self.layers,
            last=seq_len * 6 * self.hidden * self.vocab,
        )

    def hidden_elements(self, seq_len: int) -> int:
        return seq_len * self.hidden

    def attention_elements(self, seq_len: int) -> int:
        return seq_len * self.head_width * 2 * (self.heads + self.key_value_heads)

    @property
    def _block_matrices(self) -> int:
        """Parameters of a block's matrices."""
        attention = 2 * self.hidden * self.head_width * (self.heads + self.key_value_heads)
        return attention + (3 if self.is_gated else 2) * self.hidden * self.ffn_width
