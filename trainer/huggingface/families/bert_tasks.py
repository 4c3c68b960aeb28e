"""BERT without a head, and with those that tell classes apart. Imports no torch.

Of texts, behind the pooler; of tokens; and the two numbers of each token that tell where an answer is.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from trainer.huggingface.families import bert
from trainer.huggingface.families.family import Family
from trainer.huggingface.families.labels import classes_from, unnamed
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, both
from trainer.models.encoder.pooled_config import ClassesConfig
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.encoder.token_classes_config import TokenClassesConfig
from trainer.models.towers.text_pair_config import TextPairConfig


def _texts_from(fields: Fields) -> TextClassesConfig:
    fields.harmless("tie_word_embeddings")
    classes = classes_from(fields)
    return TextClassesConfig(**bert.body_from(fields), classes=classes, pool="first", head_layer="tanh")


def _tokens_from(fields: Fields) -> TokenClassesConfig:
    fields.harmless("tie_word_embeddings")
    return TokenClassesConfig(**bert.body_from(fields), classes=classes_from(fields))


def _pair_from(fields: Fields) -> TextPairConfig:
    fields.harmless("tie_word_embeddings")
    return TextPairConfig(**bert.body_from(fields))


def _to_config(cfg: ClassesConfig, context: int) -> dict[str, Any]:
    return bert.to_config(cfg, context) | unnamed(cfg.classes)


def _mapped(cfg: ClassesConfig, *, classifier: str) -> list[Mapped]:
    found = bert.body(cfg)
    if cfg.has_head_layer:
        found += both("head.transform.dense", f"{bert.BASE}pooler.dense", (cfg.hidden, cfg.hidden))
    return found + both("head.project", classifier, (cfg.classes, cfg.hidden))


def _family(architecture: str, *, texts: bool, classifier: str = "classifier", objective: str = "") -> Family:
    return Family(
        architecture=f"BertFor{architecture}",
        model_type="bert",
        config=TextClassesConfig if texts else TokenClassesConfig,
        to_config=_to_config,
        from_config=_texts_from if texts else _tokens_from,
        mapped=partial(_mapped, classifier=classifier),
        base=bert.BASE,
        objective=objective,
    )


BERT_TEXTS = _family("SequenceClassification", texts=True)
BERT_TOKENS = _family("TokenClassification", texts=False)
BERT_ANSWERS = _family("QuestionAnswering", texts=False, classifier="qa_outputs", objective="answers")
BERT_BODY = Family(
    architecture="BertModel",
    model_type="bert",
    config=TextPairConfig,
    to_config=bert.to_config,
    from_config=_pair_from,
    mapped=lambda cfg: bert.body(cfg, base=""),
    also=lambda cfg: bert.pooler(cfg, base=""),
    left_open=frozenset({"pool", "learnt"}),
)
