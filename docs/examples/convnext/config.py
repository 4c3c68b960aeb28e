"""A convolutional image encoder: its keys, its facts, and how it is cut. Imports no torch."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from common.model_plan import Init, ModelPlan, Tower
from trainer.models.config import ModelConfig, Parts
from trainer.models.pictures import Pictures

STEM, KERNEL, EXPANSION = 4, 7, 4


@dataclass
class ConvNeXtConfig(ModelConfig):
    """ConvNeXt (Liu et al. 2022, arXiv:2201.03545) for classification; the defaults are ConvNeXt-T's.

    Its norms are LayerNorms: each position is normalised by itself, so a picture's result does not depend on
    what else is in its micro-batch.
    """

    model_class: ClassVar[str] = "convnext.model:ConvNeXt"
    offers: ClassVar[frozenset[str]] = frozenset({"classes"})
    vocab: ClassVar[int] = 0

    kind: str = ""
    image_size: Annotated[int, "height and width of a picture", "≥ 1", "in pixels"] = 224
    depths: Annotated[list[int], "blocks of each stage", "not empty", "≥ 1"] = field(
        default_factory=lambda: [3, 3, 9, 3]
    )
    widths: Annotated[list[int], "channels of each stage", "not empty", "≥ 1"] = field(
        default_factory=lambda: [96, 192, 384, 768]
    )
    layer_scale: Annotated[float, "first value of the factors of each block's branch", "> 0"] = 1.0e-6
    classes: Annotated[int, "how many there are; at least the corpus's", "≥ 1"] = 1000

    def check(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"model.depths={self.depths}, model.widths={self.widths}: not equally many stages"
            )
        if self.image_size % self._smallest:
            raise ValueError(
                f"model.image_size={self.image_size}: not a multiple of {self._smallest}, by which the "
                "stages divide it"
            )

    def check_layout(self, *, tp: int, cp: int) -> None:
        if tp * cp > 1:
            raise ValueError(
                f"parallel.tp={tp}, parallel.cp={cp}: convolutions are not split over ranks: give these "
                "ranks to the data axes or to parallel.pp"
            )

    @property
    def blocks(self) -> int:
        return sum(self.depths)

    @property
    def _smallest(self) -> int:
        return STEM * 2 ** (len(self.widths) - 1)

    def stage_of(self, block: int) -> int:
        """Return the stage that a block is in."""
        ends = [sum(self.depths[: stage + 1]) for stage in range(len(self.depths))]
        return next(stage for stage, end in enumerate(ends) if block < end)

    def shrinks(self, block: int) -> bool:
        """Whether a block begins a stage and halves height and width first."""
        return block > 0 and self.stage_of(block) > self.stage_of(block - 1)

    def shape_after(self, block: int) -> tuple[int, int, int]:
        """Return height, width and channels behind a block; -1: behind the stem."""
        stage = self.stage_of(max(block, 0))
        side = self.image_size // STEM >> stage
        return side, side, self.widths[stage]

    def elements_after(self, block: int) -> int:
        height, width, channels = self.shape_after(block)
        return height * width * channels

    @property
    def most_elements(self) -> int:
        """Elements of a picture's hidden state where it is largest. Pipeline stages exchange so many."""
        return max(self.elements_after(block) for block in range(-1, self.blocks))

    def pictures(self) -> Pictures:
        return Pictures(self.image_size)

    def positions_of_row(self, seq_len: int) -> int:
        return 1

    def row_unit(self, seq_len: int) -> tuple[str, int]:
        return "images", 1

    def plan(self) -> ModelPlan:
        def init(name: str, shape: tuple[int, ...]) -> Init:
            if len(shape) > 1:
                return Init("trunc_normal", 0.02)
            if name.endswith(".scale"):
                return Init("constant", value=self.layer_scale)
            return Init("zeros" if name.endswith(".bias") else "ones")

        return ModelPlan(
            towers=(Tower("layers", first=("embed",), last=("head",)),),
            tensor=(),
            tied=(),
            hidden_shape=lambda shape: (*shape[:2], self.most_elements),
            init=init,
            no_decay=lambda name, shape: len(shape) == 1,
        )

    def block_counts(self) -> dict[str, int]:
        return {"model.depths": self.blocks}

    def parameters(self) -> Parts:
        """Blocks differ, so they are counted with the stem, in `first`."""
        stem = self.widths[0] * (3 * STEM**2 + 3)
        blocks = sum(self._parameters_of(block) for block in range(self.blocks))
        return Parts(stem + blocks, 0, 0, 2 * self.widths[-1] + (self.widths[-1] + 1) * self.classes)

    def _parameters_of(self, block: int) -> int:
        width = self.widths[self.stage_of(block)]
        own = width * (KERNEL**2 + 1) + 2 * width + 2 * EXPANSION * width**2 + EXPANSION * width + 2 * width
        if not self.shrinks(block):
            return own
        before = self.widths[self.stage_of(block) - 1]
        return own + 2 * before + (4 * before + 1) * width

    def sizes_to_lower(self) -> tuple[str, ...]:
        return f"model.widths={self.widths}", f"model.depths={self.depths}"

    def training_flops(self, seq_len: int) -> Parts:
        """Of one picture: a multiply-add is 2 operations, backward is twice the forward."""
        height, width, channels = self.shape_after(-1)
        total = height * width * channels * 3 * STEM**2
        for block in range(self.blocks):
            height, width, channels = self.shape_after(block)
            products = channels * KERNEL**2 + 2 * EXPANSION * channels**2
            if self.shrinks(block):
                products += 4 * self.widths[self.stage_of(block) - 1] * channels
            total += height * width * products
        return Parts(6 * total, 0, 0, 6 * self.widths[-1] * self.classes)

    def hidden_elements(self, seq_len: int) -> int:
        return self.most_elements

    def attention_elements(self, seq_len: int) -> int:
        return 0
