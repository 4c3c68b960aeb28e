"""What an encoder is made of, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from common.model_plan import ModelPlan
from trainer.models import sizes
from trainer.models.config import InitFrom, Parts
from trainer.models.encoder.plan import encoder_plan
from trainer.models.keys import (
    GlobalEvery,
    Heads,
    Hidden,
    Layers,
    MaxPositions,
    MaybeGatedFFNHidden,
    NormEps,
    RopeTheta,
    TieEmbeddings,
)

Norm = Literal["layer", "rms"]
NormPlace = Literal["pre", "post"]
Activation = Literal["geglu", "geglu_tanh", "swiglu", "gelu", "gelu_tanh"]
Positions = Literal["rope", "learned"]


@dataclass
class EncoderConfig:
    """A transformer that predicts masked tokens. The defaults are ModernBERT's (Warner et al. 2024,
    arXiv:2412.13663): rotary positions, norms before attention and feed-forward layer, GeGLU, no biases, two
    of three blocks with local attention. BERT (Devlin et al. 2018, arXiv:1810.04805) is another set of keys:
    docs/models.md has both.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.encoder.encoder:Encoder"
    offers: ClassVar[frozenset[str]] = frozenset({"masked tokens"})

    kind: Annotated[Literal["encoder"], "which model this is"] = "encoder"
    layers: Layers = 4
    hidden: Hidden = 256
    heads: Heads = 4
    ffn_hidden: MaybeGatedFFNHidden = 0
    vocab: Annotated[
        int,
        "tokens the model knows: at least the tokenizer's and those that the objective adds",
        "≥ 1",
        "in tokens",
    ] = 4096
    tie_embeddings: TieEmbeddings = True
    norm: Annotated[Norm, "LayerNorm, or RMSNorm"] = "layer"
    norm_place: Annotated[
        NormPlace, "norms before attention and feed-forward layer and one at the end, or behind each sum"
    ] = "pre"
    activation: Annotated[
        Activation, "of the feed-forward layer; …glu: gated; …_tanh: GELU by its approximation with tanh"
    ] = "geglu"
    biases: Annotated[bool, "in linear layers and LayerNorms; the logits have one always"] = False
    positions: Annotated[Positions, "rotary, or a learned vector for each position"] = "rope"
    max_positions: MaxPositions = 512
    token_types: Annotated[
        int, "vectors that tell a row's first sentence from its second; 0: none", "≥ 0", "0 or ≥ 2"
    ] = 0
    rope_theta: RopeTheta = 160000.0
    rope_theta_local: Annotated[float, "the same in blocks with a window", "> 0", "≥ 1.2e-38", "≤ 3.4e38"] = (
        10000.0
    )
    window: Annotated[
        int, "a token attends to so many tokens on each side; 0: to all", "≥ 0", "in tokens"
    ] = 64
    global_every: GlobalEvery = 3
    next_sentence: Annotated[
        bool, "a head that tells from the first token whether a row's second sentence follows its first"
    ] = False
    norm_eps: NormEps = 1e-5
    init_std: Annotated[
        float,
        "standard deviation of the first weights; with norm_place=pre, projections that add to the residual "
        "stream have a smaller one",
        "> 0",
        "≥ 1.2e-38",
        "≤ 3.4e38",
    ] = 0.02
    init_from: InitFrom = ""

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layer has three matrices, not two."""
        return self.activation in sizes.GATED

    @property
    def ffn_width(self) -> int:
        return sizes.ffn_width(self.ffn_hidden, self.hidden, gated=self.is_gated)

    def window_of(self, layer: int) -> int:
        """Return how many tokens on each side a token attends to in block `layer`; 0: all."""
        is_global = self.global_every and layer % self.global_every == 0
        return 0 if is_global else self.window

    def check(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(
                f"model.hidden: {self.hidden} is not divisible by model.heads {self.heads}: change one"
            )
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(
                f"model.hidden: {self.hidden} / model.heads {self.heads} = {self.head_width} a head; "
                "model.positions=rope needs an even number"
            )
        if self.token_types == 1:
            raise ValueError("model.token_types: 1 tells nothing apart: set 2, or 0 for none")

    def check_seq_len(self, seq_len: int) -> None:
        if self.positions == "learned":
            sizes.check_positions(seq_len, self.max_positions)

    def check_layout(self, *, tp: int, cp: int) -> None:
        sizes.check_split({"heads": self.heads, "ffn_hidden": self.ffn_width, "vocab": self.vocab}, tp=tp)
        sizes.check_heads({"heads": self.heads}, tp=tp, cp=cp)

    def positions_of_row(self, seq_len: int) -> int:
        return seq_len

    def row_unit(self, seq_len: int) -> tuple[str, int]:
        return "tokens", seq_len

    def plan(self) -> ModelPlan:
        return encoder_plan(
            layers=self.layers,
            hidden=self.hidden,
            init_std=self.init_std,
            gated=self.is_gated,
            pre_norm=self.norm_place == "pre",
            learned_positions=self.positions == "learned",
            token_types=self.token_types > 0,
            next_sentence=self.next_sentence,
            tied=self.tie_embeddings,
        )

    def block_counts(self) -> dict[str, int]:
        return {"model.layers": self.layers}

    def parameters(self) -> Parts:
        """A tied embedding is counted once, in `last`. With norm_place=pre the first block has a norm less
        than the others, which `first` leaves out: its embeddings are normalised already.
        """
        norm = self.hidden * (2 if self.norm == "layer" and self.biases else 1)
        vectors = 2 * norm
        if self.biases:
            vectors += 5 * self.hidden + self.ffn_width * (2 if self.is_gated else 1)
        table = self.vocab * self.hidden
        first = norm + self.token_types * self.hidden
        if self.positions == "learned":
            first += self.max_positions * self.hidden
        if not self.tie_embeddings:
            first += table
        last = table + self.vocab + norm + self._dense
        if self.norm_place == "pre":
            first, last = first - norm, last + norm
        if self.next_sentence:
            last += self._dense + 2 * self.hidden + 2 * self.biases
        return Parts(first=first, block=self._block_matrices + vectors, blocks=self.layers, last=last)

    def sizes_to_lower(self) -> tuple[str, str]:
        return sizes.sizes_to_lower(self)

    def training_flops(self, seq_len: int) -> Parts:
        """Counted as a decoder's (see `DecoderConfig.training_flops`): attention with the full
        seq_len × seq_len scores, a window or none.
        """
        return Parts(
            first=0,
            block=seq_len * (6 * self._block_matrices + 12 * self.hidden * seq_len),
            blocks=self.layers,
            last=seq_len * 6 * self.hidden * (self.hidden + self.vocab),
        )

    def hidden_elements(self, seq_len: int) -> int:
        return seq_len * self.hidden

    def attention_elements(self, seq_len: int) -> int:
        return seq_len * 4 * self.hidden

    @property
    def _dense(self) -> int:
        """Parameters of a linear layer from hidden to hidden."""
        return self.hidden * (self.hidden + self.biases)

    @property
    def _block_matrices(self) -> int:
        """Parameters of a block's matrices."""
        return 4 * self.hidden**2 + (3 if self.is_gated else 2) * self.hidden * self.ffn_width
