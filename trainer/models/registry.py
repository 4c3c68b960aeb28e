"""Which models there are. Imports no torch."""

from trainer.models.config import ModelConfig
from trainer.models.decoder.config import DecoderConfig

MODELS: dict[str, type[ModelConfig]] = {"decoder": DecoderConfig}
"""`model.kind` → the dataclass of its keys, which names the model's class. The first is the default."""
