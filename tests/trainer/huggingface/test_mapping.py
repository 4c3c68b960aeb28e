"""Each family's mapping is a bijection between elements, and names all parameters of our model."""

from math import prod
from typing import Any

import pytest
import torch

from stock_models import as_ours
from trainer.huggingface import choose
from trainer.huggingface.mapping import by_theirs
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.models.encoder.config import EncoderConfig
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.encoder.token_classes_config import TokenClassesConfig
from trainer.models.towers.image_text_config import ImageTextConfig, ImageTowerConfig, TextTowerConfig
from trainer.models.towers.text_pair_config import TextPairConfig
from trainer.models.vision.config import VisionConfig

SIZES: dict[str, Any] = {"layers": 2, "hidden": 48, "heads": 4, "vocab": 50}
GPT2: dict[str, Any] = {
    "norm": "layer",
    "activation": "gelu_tanh",
    "attention_bias": "all",
    "mlp_bias": True,
    "positions": "learned",
    "max_positions": 40,
}
BERT: dict[str, Any] = {
    "norm_place": "post",
    "activation": "gelu",
    "biases": True,
    "positions": "learned",
    "max_positions": 40,
    "token_types": 2,
    "window": 0,
}
TEXTS: dict[str, Any] = {**SIZES, "pool": "first", "head_layer": "tanh"}
GELU: dict[str, Any] = {"head_layer": "gelu", "biases": True}
PICTURE: dict[str, Any] = {"layers": 2, "hidden": 48, "heads": 4, "image_size": 24, "patch_size": 8}
CLASS: dict[str, Any] = {"class_token": True, "pool": "class"}
TEXT = TextTowerConfig(layers=2, hidden=48, heads=4)
IMAGE = ImageTowerConfig(**PICTURE)
MODELS: dict[str, tuple[str, ModelConfig]] = {
    "gpt2": ("GPT2LMHeadModel", DecoderConfig(**SIZES, **GPT2, tie_embeddings=True)),
    "gpt2_untied": ("GPT2LMHeadModel", DecoderConfig(**SIZES, **GPT2)),
    "llama": ("LlamaForCausalLM", DecoderConfig(**SIZES, kv_heads=2)),
    "llama_tied": ("LlamaForCausalLM", DecoderConfig(**SIZES, kv_heads=2, tie_embeddings=True)),
    "llama_biases": ("LlamaForCausalLM", DecoderConfig(**SIZES, attention_bias="all", mlp_bias=True)),
    "mistral": ("MistralForCausalLM", DecoderConfig(**SIZES, kv_heads=2, window=5)),
    "qwen2": ("Qwen2ForCausalLM", DecoderConfig(**SIZES, kv_heads=2, attention_bias="qkv")),
    "qwen2_windows": (
        "Qwen2ForCausalLM",
        DecoderConfig(**SIZES, attention_bias="qkv", window=5, global_every=2),
    ),
    "bert": ("BertForMaskedLM", EncoderConfig(**SIZES, **BERT)),
    "bert_pre_training": ("BertForPreTraining", EncoderConfig(**SIZES, **BERT, next_sentence=True)),
    "bert_texts": ("BertForSequenceClassification", TextClassesConfig(**TEXTS, **BERT)),
    "bert_tokens": ("BertForTokenClassification", TokenClassesConfig(**SIZES, **BERT, classes=5)),
    "bert_body": ("BertModel", TextPairConfig(**SIZES, **BERT)),
    "modern_bert_texts": ("ModernBertForSequenceClassification", TextClassesConfig(**SIZES, **GELU)),
    "modern_bert_tokens": ("ModernBertForTokenClassification", TokenClassesConfig(**SIZES, **GELU)),
    "modern_bert_body": ("ModernBertModel", TextPairConfig(**SIZES)),
    "modern_bert": ("ModernBertForMaskedLM", EncoderConfig(**SIZES, window=5, global_every=2)),
    "modern_bert_biases": (
        "ModernBertForMaskedLM",
        EncoderConfig(**SIZES, biases=True, tie_embeddings=False, window=0),
    ),
    "ijepa": ("IJepaForImageClassification", VisionConfig(**PICTURE)),
    "vit": ("ViTForImageClassification", VisionConfig(**PICTURE, **CLASS, classes=7)),
    "vit_masked": ("ViTForMaskedImageModeling", VisionConfig(**PICTURE, **CLASS, head="pixels")),
    "clip": ("CLIPModel", ImageTextConfig(vocab=50, embedding=16, text=TEXT, image=IMAGE)),
    "qwen3": ("Qwen3ForCausalLM", DecoderConfig(**SIZES, kv_heads=2, head_dim=20, qk_norm=True)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_mapping_is_a_bijection(name: str) -> None:
    architecture, cfg = MODELS[name]
    family, _ = choose.for_export(cfg, 32)
    assert family.architecture == architecture
    mapped = family.mapped(cfg)
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in build_model(cfg).named_parameters()}
    assert {one.ours: one.shape for one in mapped} == ours
    assert len(mapped) == len(ours)
    numbers = {}
    for theirs, parts in by_theirs(mapped).items():
        assert {part.whole for part in parts} == {parts[0].whole}
        first = sum(tensor.numel() for tensor in numbers.values())
        numbers[theirs] = first + torch.arange(prod(parts[0].whole)).reshape(parts[0].whole)
    found = torch.cat([tensor.flatten() for tensor in as_ours(cfg, numbers).values()])
    assert torch.equal(found.sort().values, torch.arange(len(found)))
    assert len(found) == cfg.parameters().total
