"""ModernBERT without a head, and with those that tell classes apart. Imports no torch.

Its heads for tokens and for answers are behind the same layer as the others.
"""

from __future__ import annotations

from typing import Any

from trainer.huggingface.families import modern_bert
from trainer.huggingface.families.family import Family
from trainer.huggingface.families.labels import classes_from, unnamed
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, both
from trainer.models.encoder.pooled_config import ClassesConfig
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.encoder.token_classes_config import TokenClassesConfig
from trainer.models.towers.text_pair_config import TextPairConfig

_POOLS = {"cls": "first", "mean": "mean"}


def _body_from(fields: Fields) -> dict[str, Any]:
    fields.harmless("tie_word_embeddings", "decoder_bias")
    return modern_bert.body_from(fields)


def _texts_from(fields: Fields) -> TextClassesConfig:
    pool = fields.choice("classifier_pooling", "cls", _POOLS)
    classes = classes_from(fields)
    return TextClassesConfig(**_body_from(fields), classes=classes, pool=pool, head_layer="gelu")


def _tokens_from(fields: Fields) -> TokenClassesConfig:
    fields.harmless("classifier_pooling")
    return TokenClassesConfig(**_body_from(fields), classes=classes_from(fields), head_layer="gelu")


def _pair_from(fields: Fields) -> TextPairConfig:
    fields.harmless("classifier_pooling")
    return TextPairConfig(**_body_from(fields))


def _to_config(cfg: ClassesConfig, context: int) -> dict[str, Any]:
    theirs = modern_bert.to_config(cfg, context) | unnamed(cfg.classes)
    if isinstance(cfg, TextClassesConfig):
        theirs["classifier_pooling"] = "mean" if cfg.pool == "mean" else "cls"
    return theirs


def _mapped(cfg: ClassesConfig) -> list[Mapped]:
    head = both("head.project", "classifier", (cfg.classes, cfg.hidden))
    return modern_bert.body(cfg, transform=True) + head


def _family(architecture: str, *, texts: bool, objective: str = "") -> Family:
    return Family(
        architecture=f"ModernBertFor{architecture}",
        model_type="modernbert",
        config=TextClassesConfig if texts else TokenClassesConfig,
        to_config=_to_config,
        from_config=_texts_from if texts else _tokens_from,
        mapped=_mapped,
        base=modern_bert.BASE,
        objective=objective,
    )


MODERN_BERT_TEXTS = _family("SequenceClassification", texts=True)
MODERN_BERT_TOKENS = _family("TokenClassification", texts=False)
MODERN_BERT_ANSWERS = _family("QuestionAnswering", texts=False, objective="answers")
MODERN_BERT_BODY = Family(
    architecture="ModernBertModel",
    model_type="modernbert",
    config=TextPairConfig,
    to_config=modern_bert.to_config,
    from_config=_pair_from,
    mapped=lambda cfg: modern_bert.body(cfg, base=""),
    left_open=frozenset({"pool", "learnt"}),
)
