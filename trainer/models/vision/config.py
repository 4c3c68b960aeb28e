"""What a vision transformer is made of, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from common.model_plan import ModelPlan
from trainer.models import sizes
from trainer.models.config import InitFrom, Parts
from trainer.models.keys import (
    ClassToken,
    EmbedNorm,
    FFNHidden,
    Heads,
    Hidden,
    ImageSize,
    InitStd,
    Layers,
    NormEps,
    PatchBias,
    PatchSize,
    PixelMean,
    PixelStd,
    Registers,
)
from trainer.models.pictures import Pictures
from trainer.models.vision.plan import vision_plan

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Positions = Literal["learned", "sincos"]
Pool = Literal["class", "mean", "attention"]
Head = Literal["classes", "pixels", "embedding"]
CHANNELS = 3


@dataclass
class VisionConfig:
    """A vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929). The defaults are ViT-S/16's with mean
    pooling.

    `registers` are Darcet et al.'s (2023, arXiv:2309.16588). With a class token a picture mostly has an odd
    number of positions; one register makes it even, which tensor parallelism needs.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.vision.vision:Vision"
    offers: ClassVar[frozenset[str]] = frozenset({"classes", "pixels", "embedding"})
    vocab: ClassVar[int] = 0

    kind: Annotated[Literal["vision"], "which model this is"] = "vision"
    image_size: ImageSize = 224
    patch_size: PatchSize = 16
    layers: Layers = 12
    hidden: Hidden = 384
    heads: Heads = 6
    ffn_hidden: FFNHidden = 0
    activation: Annotated[
        Activation,
        "of the feed-forward layer; gelu_tanh: its approximation with tanh; quick_gelu: with a sigmoid, as "
        "CLIP's",
    ] = "gelu"
    positions: Annotated[Positions, "a learnt table, or fixed sines and cosines of row and column"] = (
        "learned"
    )
    class_token: ClassToken = False
    registers: Registers = 0
    pool: Annotated[
        Pool,
        "what classes and embedding are made of: the class token, the mean of the patches, or a learnt query "
        "that attends to all positions",
        "class: needs model.class_token=true",
    ] = "mean"
    patch_bias: PatchBias = True
    embed_norm: EmbedNorm = False
    norm_eps: NormEps = 1e-6
    head: Annotated[
        Head,
        "classes: a logit for each class; pixels: those of masked patches; embedding: a vector for each "
        "picture",
    ] = "classes"
    classes: Annotated[int, "head=classes: how many there are; at least the corpus's", "≥ 1"] = 1000
    embedding: Annotated[int, "head=embedding: its width; 0: the pooled hidden state itself", "≥ 0"] = 128
    embedding_hidden: Annotated[
        int, "head=embedding: width of a layer with GELU before it, as in SimCLR; 0: none", "≥ 0"
    ] = 0
    pixel_mean: PixelMean = field(default_factory=lambda: [0.5, 0.5, 0.5])
    pixel_std: PixelStd = field(default_factory=lambda: [0.5, 0.5, 0.5])
    init_std: InitStd = 0.02
    init_from: InitFrom = ""

    @property
    def ffn_width(self) -> int:
        return self.ffn_hidden or 4 * self.hidden

    @property
    def prefix(self) -> int:
        """Positions before a picture's patches."""
        return int(self.class_token) + self.registers

    @property
    def patch_values(self) -> int:
        """Values of a patch."""
        return CHANNELS * self.patch_size**2

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Widths from the pooled hidden state to the head's result; see `PooledHead`."""
        if self.head == "classes":
            return self.hidden, self.classes
        return tuple(width for width in (self.hidden, self.embedding_hidden, self.embedding) if width)

    def pictures(self) -> Pictures:
        r, g, b = self.pixel_mean
        std_r, std_g, std_b = self.pixel_std
        return Pictures(self.image_size, (r, g, b), (std_r, std_g, std_b), self.patch_size, self.prefix)

    def check(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"model.image_size: {self.image_size} is not a multiple of model.patch_size {self.patch_size}"
            )
        if self.hidden % self.heads:
            raise ValueError(
                f"model.hidden: {self.hidden} is not divisible by model.heads {self.heads}: change one"
            )
        if self.positions == "sincos" and self.hidden % 4:
            raise ValueError(
                f"model.hidden: {self.hidden} is not divisible by 4, which model.positions=sincos needs"
            )
        if self.embedding_hidden and not self.embedding:
            raise ValueError(
                f"model.embedding_hidden: {self.embedding_hidden} needs model.embedding, the width after it"
            )

    def check_seq_len(self, seq_len: int) -> None:
        """A picture's positions follow from its size."""

    def check_layout(self, *, tp: int, cp: int) -> None:
        sizes.check_split({"heads": self.heads, "ffn_hidden": self.ffn_width}, tp=tp)
        if cp > 1 and self.head != "pixels":
            raise ValueError(
                f"parallel.cp={cp}: model.head={self.head} pools all positions of a picture, which cp would "
                "part: give its ranks to the data axes, or to parallel.tp"
            )
        sizes.check_heads({"heads": self.heads}, tp=tp, cp=cp)
        positions = self.pictures().positions
        if positions % (tp * cp):
            raise ValueError(
                f"model.image_size={self.image_size}: {self._positions_in_words} = {positions} positions are "
                f"not divisible by parallel.tp={tp} · parallel.cp={cp}, which share them: set "
                f"model.registers={self.registers + -positions % (tp * cp)}, or change picture or patch"
            )

    @property
    def _positions_in_words(self) -> str:
        side = self.image_size // self.patch_size
        before = " + 1 class token" if self.class_token else ""
        return f"{side} · {side} patches{before}" + (
            f" + {self.registers} registers" if self.registers else ""
        )

    def positions_of_row(self, seq_len: int) -> int:
        return self.pictures().positions

    def row_unit(self, seq_len: int) -> tuple[str, int]:
        return "images", 1

    def plan(self) -> ModelPlan:
        return vision_plan(
            layers=self.layers,
            hidden=self.hidden,
            init_std=self.init_std,
            head=self.head,
            attention_pool=self.pool == "attention",
        )

    def block_counts(self) -> dict[str, int]:
        return {"model.layers": self.layers}

    def parameters(self) -> Parts:
        norm = 2 * self.hidden
        tables = self.prefix + (self.pictures().positions if self.positions == "learned" else 0)
        if self.head == "pixels":
            tables += 1
        first = self.hidden * (self.patch_values + self.patch_bias + tables) + norm * self.embed_norm
        vectors = 2 * norm + 5 * self.hidden + self.ffn_width
        return Parts(first, self._block_matrices + vectors, self.layers, norm + self._head_parameters)

    def sizes_to_lower(self) -> tuple[str, str]:
        return sizes.sizes_to_lower(self)

    def training_flops(self, seq_len: int) -> Parts:
        """Of one picture, as the decoder counts: matrix products and attention. The head's are those of all
        positions for pixels, although masked ones alone are computed.
        """
        seen = self.pictures()
        block = seen.positions * (6 * self._block_matrices + 12 * self.hidden * seen.positions)
        last = 6 * self._head_parameters * (seen.patches if self.head == "pixels" else 1)
        return Parts(6 * seen.patches * self.patch_values * self.hidden, block, self.layers, last)

    def hidden_elements(self, seq_len: int) -> int:
        return self.pictures().positions * self.hidden

    def attention_elements(self, seq_len: int) -> int:
        return self.pictures().positions * 4 * self.hidden

    @property
    def _block_matrices(self) -> int:
        """Parameters of a block's matrices."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.ffn_width

    @property
    def _head_parameters(self) -> int:
        if self.head == "pixels":
            return (self.hidden + 1) * self.patch_values
        widths = self.head_widths
        layers = sum((inner + 1) * outer for inner, outer in pairwise(widths))
        if self.head == "embedding" and len(widths) > 1:
            layers -= widths[-1]  # its last layer has no bias
        if self.pool != "attention":
            return layers
        return layers + self._block_matrices + 8 * self.hidden + self.ffn_width
