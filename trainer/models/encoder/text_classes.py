"""An encoder that tells classes of texts apart."""

from trainer.models.encoder.pooled import PooledEncoder
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.towers.head import TextHead


class TextClasses(PooledEncoder):
    """An encoder and a linear layer on what it pools: float32 logits [rows, classes]."""

    def __init__(self, cfg: TextClassesConfig) -> None:
        super().__init__(cfg, TextHead(cfg.hidden, cfg.classes, bias=True, learnt="none"))
