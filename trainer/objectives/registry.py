"""Which objectives there are. Imports no torch."""

from trainer.objectives.config import CausalLMConfig, ObjectiveConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "causal_lm": CausalLMConfig,
}
"""`objective.kind` → the dataclass of its keys. The first is the default."""
