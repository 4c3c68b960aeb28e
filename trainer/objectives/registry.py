"""Which objectives there are. Imports no torch."""

from trainer.objectives.config import CausalLMConfig, ObjectiveConfig
from trainer.objectives.contrastive_config import ClipConfig, ContrastiveConfig, SiglipConfig
from trainer.objectives.marked.config import AnswersConfig, InstructionConfig, TagsConfig
from trainer.objectives.masked.config import MaskedLMConfig
from trainer.objectives.picture_config import ClassificationConfig, MaskedImagesConfig
from trainer.objectives.spans.config import FillInTheMiddleConfig, SpanCorruptionConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "causal_lm": CausalLMConfig,
    "fill_in_the_middle": FillInTheMiddleConfig,
    "span_corruption": SpanCorruptionConfig,
    "masked_lm": MaskedLMConfig,
    "contrastive": ContrastiveConfig,
    "clip": ClipConfig,
    "siglip": SiglipConfig,
    "classification": ClassificationConfig,
    "masked_images": MaskedImagesConfig,
    "instruction": InstructionConfig,
    "tags": TagsConfig,
    "answers": AnswersConfig,
}
"""`objective.kind` → the dataclass of its keys. The first is the default."""
