"""A decoder whose blocks compute attention and feed-forward side by side: its keys and facts."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from trainer.models.config import Parts
from trainer.models.decoder.config import DecoderConfig


@dataclass
class ParallelDecoderConfig(DecoderConfig):
    """All keys of the decoder, and one more."""

    model_class: ClassVar[str] = "parallel_decoder.model:ParallelDecoder"

    branch_scale: Annotated[float, "what both branches are multiplied by", "> 0"] = 1.0

    def parameters(self) -> Parts:
        """A block has one norm less than the decoder's."""
        of_decoder = super().parameters()
        norm = self.hidden * (2 if self.norm == "layer" else 1)
        return replace(of_decoder, block=of_decoder.block - norm)
