"""A tower for pictures beside one for texts, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from common.model_plan import Init, ModelPlan, Tower
from trainer.models.blocks import block_styles, first_values
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
    Vocab,
)
from trainer.models.pairs import LEARNT_COLUMNS, TextPool
from trainer.models.pictures import Pictures
from trainer.models.sizes import check_positions, check_split
from trainer.models.towers.learnt import (
    PUBLISHED_BIAS,
    FirstBias,
    FirstScale,
    LearntNumbers,
    learnt_init,
)
from trainer.models.vision.config import VisionConfig

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Projection = Literal["none", "linear", "linear_bias"]


@dataclass
class TextTowerConfig:
    """The tower for texts: pre-norm blocks with LayerNorm and biases, learned positions."""

    layers: Layers = 12
    hidden: Hidden = 512
    heads: Heads = 8
    ffn_hidden: FFNHidden = 0
    activation: Annotated[Activation, "of the feed-forward layer"] = "quick_gelu"
    max_positions: Annotated[int, "learned positions; at least data.seq_len", "≥ 1", "in tokens"] = 77
    causal: Annotated[bool, "whether a token attends only to itself and those before it"] = True
    pool: Annotated[
        TextPool, "what an embedding is made of: the mean of a text's hidden states, the first or the last"
    ] = "last"
    project: Annotated[Projection, "the layer from the pooled hidden state to the embedding"] = "linear"
    norm_eps: NormEps = 1e-5

    @property
    def ffn_width(self) -> int:
        return self.ffn_hidden or 4 * self.hidden

    @property
    def block_matrices(self) -> int:
        """Parameters of a block's matrices."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.ffn_width


@dataclass
class ImageTowerConfig:
    """The tower for pictures: a vision transformer; its keys are those of model.kind=vision."""

    image_size: ImageSize = 224
    patch_size: PatchSize = 32
    layers: Layers = 12
    hidden: Hidden = 768
    heads: Heads = 12
    ffn_hidden: FFNHidden = 0
    activation: Annotated[Activation, "of the feed-forward layer"] = "quick_gelu"
    class_token: ClassToken = True
    registers: Registers = 0
    pool: Annotated[
        Literal["class", "mean", "attention"],
        "what an embedding is made of: the class token, the mean of the patches, or a learnt query that "
        "attends to all positions",
    ] = "class"
    project: Annotated[
        Literal["none", "linear"], "the layer from the pooled hidden state to the embedding"
    ] = "linear"
    patch_bias: PatchBias = False
    embed_norm: EmbedNorm = True
    norm_eps: NormEps = 1e-5
    pixel_mean: PixelMean = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    pixel_std: PixelStd = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])


@dataclass
class ImageTextConfig:
    """Two towers, whose embeddings of a picture and of its caption are compared. The defaults are those of
    CLIP ViT-B/32 (Radford et al. 2021, arXiv:2103.00020); docs/models.md has SigLIP's too.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.towers.image_text:ImageText"
    offers: ClassVar[frozenset[str]] = frozenset({"embedding"})

    kind: Annotated[Literal["image_text"], "which model this is"] = "image_text"
    vocab: Vocab = 49408
    embedding: Annotated[int, "width of an embedding", "≥ 1"] = 512
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    learnt: LearntNumbers = "scale"
    first_scale: FirstScale = 0.0
    first_bias: FirstBias = PUBLISHED_BIAS
    init_std: InitStd = 0.02
    init_from: InitFrom = ""

    @property
    def pool(self) -> TextPool:
        """Implements `trainer.models.pairs.EmbedsPairs`."""
        return self.text.pool

    def vision(self) -> VisionConfig:
        """Return the tower for pictures as a model of its own."""
        image = self.image
        shared = {name: value for name, value in vars(image).items() if name != "project"}
        width = self.embedding if image.project == "linear" else 0
        return VisionConfig(**shared, head="embedding", embedding=width, init_std=self.init_std)

    def pictures(self) -> Pictures:
        """Implements `trainer.models.pictures.TakesPictures`."""
        return self.vision().pictures()

    def check(self) -> None:
        if self.text.hidden % self.text.heads:
            raise ValueError(
                f"model.text.hidden: {self.text.hidden} is not divisible by model.text.heads "
                f"{self.text.heads}: change one"
            )
        if self.image.pool == "class" and not self.image.class_token:
            raise ValueError("model.image.pool=class needs model.image.class_token=true")
        for side, tower in (("text", self.text), ("image", self.image)):
            if tower.project == "none" and tower.hidden != self.embedding:
                raise ValueError(
                    f"model.{side}.project=none: model.{side}.hidden={tower.hidden} must be "
                    f"model.embedding={self.embedding}: set model.{side}.project=linear, or change one"
                )
        with named("image"):
            self.vision().check()

    def check_seq_len(self, seq_len: int) -> None:
        check_positions(seq_len, self.text.max_positions, "text.max_positions")

    def check_layout(self, *, tp: int, cp: int) -> None:
        if cp > 1:
            raise ValueError(
                f"parallel.cp={cp}: a picture and its caption are two sequences: give its ranks to the data "
                "axes, or to parallel.tp"
            )
        text = {"text.heads": self.text.heads, "text.ffn_hidden": self.text.ffn_width}
        check_split(text | {"vocab": self.vocab}, tp=tp)
        with named("image"):
            self.vision().check_layout(tp=tp, cp=cp)

    def positions_of_row(self, seq_len: int) -> int:
        """Those of the caption; `check_layout` checks those of the picture."""
        return seq_len

    def row_unit(self, seq_len: int) -> tuple[str, int]:
        return "images", 1

    def plan(self) -> ModelPlan:
        text, vision = self.text, self.vision()
        image = vision.plan()
        of_text = first_values(self.init_std, residual_layers=text.layers)
        positions = vision.pictures().positions

        def init(name: str, shape: tuple[int, ...]) -> Init:
            if name.startswith("image."):
                return image.init(name.removeprefix("image."), shape)
            learnt = learnt_init(name, self.learnt, self.first_scale, self.first_bias)
            return learnt or of_text(name, shape)

        return ModelPlan(
            towers=(
                Tower("text.layers", ("text.embed", "text.places"), ("text.norm", "text.head")),
                Tower("image.layers", ("image.embed",), ("image.norm", "image.head")),
            ),
            tensor=(
                *((f"text.{name}", style) for name, style in _TEXT_STYLES),
                *((f"image.{name}", style) for name, style in image.tensor),
            ),
            tied=(),
            hidden_shape=lambda shape: (shape[0], shape[1] * text.hidden + positions * vision.hidden),
            init=init,
            no_decay=lambda name, shape: (
                len(shape) == 1
                or (name.startswith("image.") and image.no_decay(name.removeprefix("image."), shape))
            ),
        )

    def block_counts(self) -> dict[str, int]:
        return {"model.text.layers": self.text.layers, "model.image.layers": self.image.layers}

    def parameters(self) -> Parts:
        """The blocks of both towers are counted in `first`: they differ."""
        text = self.text
        block = text.block_matrices + 9 * text.hidden + text.ffn_width
        first = (self.vocab + text.max_positions) * text.hidden + text.layers * block
        last = 2 * text.hidden + LEARNT_COLUMNS[self.learnt]
        if text.project != "none":
            last += (text.hidden + (text.project == "linear_bias")) * self.embedding
        return _together(first, last, self.vision().parameters())

    def sizes_to_lower(self) -> tuple[str, ...]:
        image = self.vision().parameters().total
        side, tower = ("image", self.image) if 2 * image > self.parameters().total else ("text", self.text)
        sizes = ("hidden", "layers", "ffn_hidden")
        name = max(sizes, key=lambda name: getattr(tower, name))
        if side == "text" and self.vocab > max(getattr(tower, name) for name in sizes):
            return f"model.vocab={self.vocab}", f"model.text.layers={tower.layers}"
        return f"model.{side}.{name}={getattr(tower, name)}", f"model.{side}.layers={tower.layers}"

    def training_flops(self, seq_len: int) -> Parts:
        """Of a picture and its caption, as `DecoderConfig` counts; blocks are counted in `first`."""
        text = self.text
        blocks = text.layers * seq_len * (6 * text.block_matrices + 12 * text.hidden * seq_len)
        last = 0 if text.project == "none" else 6 * text.hidden * self.embedding
        return _together(blocks, last, self.vision().training_flops(seq_len))

    def hidden_elements(self, seq_len: int) -> int:
        return seq_len * self.text.hidden + self.vision().hidden_elements(seq_len)

    def attention_elements(self, seq_len: int) -> int:
        return 4 * self.hidden_elements(seq_len)


_TEXT_STYLES = (
    ("embed", "vocab_embedding"),
    ("places", "split"),
    *block_styles(),
    ("norm", "sequence"),
    ("head", "alike"),
    ("head.project", "sequence"),
)


def _together(first: int, last: int, other: Parts) -> Parts:
    return Parts(first + other.first + other.blocks * other.block, 0, 0, last + other.last)


class named:
    """Within the context, an error about `model.KEY` is one about `model.TOWER.KEY`."""

    def __init__(self, tower: str) -> None:
        self._tower = tower

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ValueError):
            raise ValueError(str(error).replace("model.", f"model.{self._tower}.")) from None
