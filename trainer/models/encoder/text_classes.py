"""An encoder that tells classes of texts apart."""

from trainer.models.encoder.heads import layer_before_classes
from trainer.models.encoder.pooled import PooledEncoder
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.towers.head import TextHead


class TextClasses(PooledEncoder):
    """An encoder and a linear layer on what it pools, behind `head_layer`: float32 logits [rows, classes]."""

    def __init__(self, cfg: TextClassesConfig) -> None:
        head = TextHead(
            cfg.hidden, cfg.classes, bias=True, learnt="none", transform=layer_before_classes(cfg)
        )
        super().__init__(cfg, head)
