"""The architectures of `transformers` that are read and written. Imports no torch."""

from trainer.huggingface.families.bert import BERT, BERT_PRE_TRAINING
from trainer.huggingface.families.bert_tasks import BERT_ANSWERS, BERT_BODY, BERT_TEXTS, BERT_TOKENS
from trainer.huggingface.families.family import Family
from trainer.huggingface.families.gpt2 import GPT2
from trainer.huggingface.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from trainer.huggingface.families.modern_bert import MODERN_BERT
from trainer.huggingface.families.modern_bert_tasks import (
    MODERN_BERT_ANSWERS,
    MODERN_BERT_BODY,
    MODERN_BERT_TEXTS,
    MODERN_BERT_TOKENS,
)
from trainer.huggingface.families.towers import CLIP, SIGLIP
from trainer.huggingface.families.vit import IJEPA, VIT, VIT_MASKED

FAMILIES: tuple[Family, ...] = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, GPT2),
    *(BERT, BERT_PRE_TRAINING, BERT_TEXTS, BERT_ANSWERS, BERT_TOKENS, BERT_BODY),
    *(MODERN_BERT, MODERN_BERT_TEXTS, MODERN_BERT_ANSWERS, MODERN_BERT_TOKENS, MODERN_BERT_BODY),
    *(VIT, VIT_MASKED, IJEPA, CLIP, SIGLIP),
)
"""A model that several can express is exported as the first of them. Of one model_type, a folder of none of
these architectures is read as the first.
"""
