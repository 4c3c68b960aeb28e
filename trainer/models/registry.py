"""Which models there are. Imports no torch."""

from trainer.models.config import ModelConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.models.encoder.config import EncoderConfig
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.encoder.token_classes_config import TokenClassesConfig
from trainer.models.towers.image_text_config import ImageTextConfig
from trainer.models.towers.text_pair_config import TextPairConfig
from trainer.models.vision.config import VisionConfig

MODELS: dict[str, type[ModelConfig]] = {
    "decoder": DecoderConfig,
    "encoder": EncoderConfig,
    "text_classes": TextClassesConfig,
    "token_classes": TokenClassesConfig,
    "text_pair": TextPairConfig,
    "image_text": ImageTextConfig,
    "vision": VisionConfig,
}
"""`model.kind` → the dataclass of its keys, which names the model's class. The first is the default."""
