"""Which objectives there are. Imports no torch."""

from trainer.objectives.config import CausalLMConfig, ObjectiveConfig
from trainer.objectives.contrastive_config import ClipConfig, ContrastiveConfig, SiglipConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "causal_lm": CausalLMConfig,
    "contrastive": ContrastiveConfig,
    "clip": ClipConfig,
    "siglip": SiglipConfig,
}
"""`objective.kind` → the dataclass of its keys. The first is the default."""
