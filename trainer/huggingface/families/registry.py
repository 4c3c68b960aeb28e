"""The architectures of `transformers` that are read and written. Imports no torch."""

from trainer.huggingface.families.family import Family
from trainer.huggingface.families.gpt2 import GPT2
from trainer.huggingface.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3

FAMILIES: tuple[Family, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2)
"""A model that several can express is exported as the first of them."""
