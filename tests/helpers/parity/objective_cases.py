"""Every objective on every model that takes it, at sizes for a test; `objective_parity` runs them."""

from dataclasses import dataclass, field
from typing import Any

from objective_runs import CLASSES
from runs import SEQ, VOCAB

IDLE = ("wk.bias",)
"""Ends of the names of weights on which no loss depends. A softmax does not change where all its arguments
grow alike, as they do with a key's bias: its gradient is roundings, which Adam makes whole steps of."""


@dataclass(frozen=True)
class Case:
    """An objective on a model, at sizes for a test.

    model, objective, data: their sections of a config.
    idle: ends of the names of weights on which the loss does not depend; see IDLE.
    more_blocks: keys of the model with which it has four blocks, for schedules of two stages a rank.
    lr: the learning rate. At 3e-3 some models magnify every rounding tenfold within 20 steps.
    """

    objective: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    more_blocks: dict[str, Any] = field(default_factory=lambda: {"layers": 4})
    lr: float = 3e-3
    idle: tuple[str, ...] = ()


# 16 more ids than the text's: for masks, marks and sentinels.
TOKENS = {"layers": 2, "hidden": 32, "heads": 4, "ffn_hidden": 48, "vocab": VOCAB + 16}
DECODER = {"kind": "decoder", **TOKENS, "heads": 8, "kv_heads": 4, "qk_norm": True}
GPT2 = {
    **DECODER, "kv_heads": 0, "qk_norm": False, "norm": "layer", "activation": "gelu_tanh", "mlp_bias": True,
    "attention_bias": "all", "positions": "learned", "max_positions": SEQ, "tie_embeddings": True,
}  # fmt: skip
GEMMA = {
    **DECODER, "head_dim": 16, "activation": "geglu_tanh", "window": 6, "global_every": 2,
    "attention_softcap": 20.0, "logit_softcap": 10.0, "rope_scaling": "llama3", "rope_original_positions": 8,
}  # fmt: skip
OWN_DECODER = {
    **DECODER, "kind": "parallel_decoder.config:ParallelDecoderConfig", "branch_scale": 0.7, "qk_norm": False
}  # fmt: skip
ENCODER = {"kind": "encoder", **TOKENS, "window": 5, "global_every": 2}
BERT = {
    "norm_place": "post", "activation": "gelu", "biases": True, "positions": "learned", "max_positions": 40,
    "window": 0, "global_every": 0,
}  # fmt: skip
TOKEN_CLASSES = {**ENCODER, "kind": "token_classes", "classes": 2}
TEXT_PAIR = {"kind": "text_pair", **TOKENS, "window": 4, "global_every": 2, "embedding": 12, "init_std": 0.1}
IMAGE_TEXT: dict[str, Any] = {
    "kind": "image_text",
    "vocab": VOCAB,
    "embedding": 12,
    "first_scale": 4.0,
    "init_std": 0.1,
    "text": {
        "layers": 2, "hidden": 32, "heads": 4, "ffn_hidden": 48, "max_positions": SEQ,
        "project": "linear_bias",
    },
    "image": {
        "layers": 4, "hidden": 24, "heads": 2, "ffn_hidden": 40, "image_size": 16, "patch_size": 8,
        "registers": 1,
    },
}  # fmt: skip
VISION = {
    "kind": "vision", "image_size": 16, "patch_size": 4, "layers": 2, "hidden": 32, "heads": 4,
    "ffn_hidden": 48, "classes": CLASSES,
}  # fmt: skip
MORE_TEXT_BLOCKS = {"text": {**IMAGE_TEXT["text"], "layers": 4}}
CONVNEXT = {
    "kind": "convnext.config:ConvNeXtConfig", "image_size": 16, "depths": [1, 2, 1], "widths": [8, 16, 24],
    "classes": CLASSES, "layer_scale": 0.5,
}  # fmt: skip

SMOOTH = {"z_loss": 1e-3, "label_smoothing": 0.1}
FIM = {"kind": "fill_in_the_middle", "rate": 0.7}
SPANS = {"kind": "span_corruption", **SMOOTH}
SIMCLR = {"kind": "contrastive", "negatives": "both_sides", "temperature": 0.5}
CLASSIFICATION = {"kind": "classification", "label_smoothing": 0.1}
DOCUMENTS = {"packing": "best_fit", "document_mask": True}
ONE, PAIR, MARKED = ({"packing": packing} for packing in ("one", "pair", "marked"))
PICTURES = {"packing": "one", "image_size": 16}

# Embeddings are compared by their cosines: from smaller first weights they all point nearly one way, and a
# larger first scale magnifies differences. One process whose first weights are off by a rounding each is then
# as far from itself within 20 steps as layouts are from one another: 2e-5 with CLIP's own scale.
CASES: dict[str, Case] = {
    "causal_lm, decoder": Case({"kind": "causal_lm"}, DECODER, DOCUMENTS),
    "causal_lm, decoder as GPT-2": Case({"kind": "causal_lm"}, GPT2),
    "causal_lm, decoder as Gemma 2": Case({"kind": "causal_lm", **SMOOTH}, GEMMA),
    "causal_lm, own decoder": Case({"kind": "causal_lm"}, OWN_DECODER, DOCUMENTS),
    "fill_in_the_middle, decoder": Case(FIM, DECODER, DOCUMENTS),
    "fill_in_the_middle, own decoder": Case(FIM, OWN_DECODER),
    "span_corruption, decoder": Case(SPANS, DECODER),
    "span_corruption, own decoder": Case(SPANS, OWN_DECODER, ONE),
    "masked_lm, encoder": Case({"kind": "masked_lm", "mask_rate": 0.3}, ENCODER, DOCUMENTS),
    "masked_lm, encoder as BERT, next sentence": Case(
        {"kind": "masked_lm", "next_sentence": True, "whole_words": True},
        {**ENCODER, **BERT, "token_types": 2, "next_sentence": True},
        {**ONE, "partners": True},
    ),
    "contrastive, text_pair": Case({"kind": "contrastive", "temperature": 0.2}, TEXT_PAIR, PAIR),
    "clip, text_pair": Case({"kind": "clip"}, {**TEXT_PAIR, "learnt": "scale", "first_scale": 4.0}, PAIR),
    "siglip, text_pair": Case({"kind": "siglip"}, {**TEXT_PAIR, "learnt": "scale_bias"}, PAIR),
    "contrastive, image_text": Case(
        {"kind": "contrastive", "temperature": 0.2},
        {**IMAGE_TEXT, "learnt": "none"},
        PICTURES,
        MORE_TEXT_BLOCKS,
    ),
    "clip, image_text": Case(
        {"kind": "clip"}, {**IMAGE_TEXT, "learnt": "scale"}, PICTURES, MORE_TEXT_BLOCKS, lr=1e-3
    ),
    "siglip, image_text": Case(
        {"kind": "siglip"}, {**IMAGE_TEXT, "learnt": "scale_bias"}, PICTURES, MORE_TEXT_BLOCKS
    ),
    "contrastive, vision": Case(
        SIMCLR,
        {**VISION, "head": "embedding", "embedding": 8, "embedding_hidden": 24, "init_std": 0.1},
        {**PICTURES, "image_views": 2},
        lr=1e-3,
    ),
    "classification, vision": Case(CLASSIFICATION, {**VISION, "positions": "sincos"}, PICTURES, lr=1e-3),
    "classification, vision with a class token": Case(
        CLASSIFICATION,
        {**VISION, "class_token": True, "registers": 3, "pool": "class"},
        PICTURES,
        lr=1e-3,
    ),
    "classification, vision pooled by attention": Case(
        CLASSIFICATION,
        {**VISION, "pool": "attention", "embed_norm": True, "patch_bias": False},
        PICTURES,
        lr=1e-3,
    ),
    "masked_images, vision": Case(
        {"kind": "masked_images", "mask_ratio": 0.5}, {**VISION, "head": "pixels"}, PICTURES, lr=1e-3
    ),
    "masked_images, vision, squares": Case(
        {"kind": "masked_images", "mask_patch": 8, "distance": "l2", "normalise_patches": True},
        {**VISION, "head": "pixels", "class_token": True, "registers": 3},
        PICTURES,
        lr=1e-3,
    ),
    "classification, text_classes": Case(
        CLASSIFICATION, {**ENCODER, "kind": "text_classes", "classes": CLASSES}, ONE, lr=1e-3
    ),
    "classification, text_classes as BERT": Case(
        CLASSIFICATION,
        {**ENCODER, **BERT, "kind": "text_classes", "classes": CLASSES, "pool": "first"},
        ONE,
        lr=1e-3,
    ),
    "instruction, decoder": Case({"kind": "instruction", **SMOOTH}, DECODER, MARKED),
    "instruction, own decoder": Case({"kind": "instruction"}, OWN_DECODER, MARKED),
    "tags, token_classes as BERT": Case({"kind": "tags"}, {**TOKEN_CLASSES, **BERT, "classes": 4}, MARKED),
    "answers, token_classes": Case(  # places compete, each with the same bias
        {"kind": "answers"}, TOKEN_CLASSES, MARKED, idle=("head.project.bias",)
    ),
    "classification, own ConvNeXt": Case(CLASSIFICATION, CONVNEXT, PICTURES, more_blocks={}),
}
