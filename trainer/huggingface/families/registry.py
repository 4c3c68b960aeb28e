"""The architectures of `transformers` that are read and written. Imports no torch."""

from trainer.huggingface.families.bert import BERT, BERT_PRE_TRAINING
from trainer.huggingface.families.family import Family
from trainer.huggingface.families.gpt2 import GPT2
from trainer.huggingface.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from trainer.huggingface.families.modern_bert import MODERN_BERT
from trainer.huggingface.families.towers import CLIP, SIGLIP
from trainer.huggingface.families.vit import VIT, VIT_MASKED

FAMILIES: tuple[Family, ...] = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, GPT2),
    *(BERT, BERT_PRE_TRAINING, MODERN_BERT),
    *(VIT, VIT_MASKED, CLIP, SIGLIP),
)
"""A model that several can express is exported as the first of them."""
