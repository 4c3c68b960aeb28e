"""ViT that tells classes of pictures apart, or that predicts masked patches (SimMIM). Imports no torch.

A convolution whose stride is its kernel is our matrix on patches: its weights are in the same order.
"""

from __future__ import annotations

from typing import Any

from trainer.huggingface.families import pictures
from trainer.huggingface.families.family import Family
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, reshaped, same
from trainer.models.vision.config import CHANNELS, VisionConfig

_BLOCK = {
    "layernorm_before": "attention_norm",
    "layernorm_after": "mlp_norm",
    "attention.attention.query": "attention.wq",
    "attention.attention.key": "attention.wk",
    "attention.attention.value": "attention.wv",
    "attention.output.dense": "attention.wo",
    "intermediate.dense": "mlp.w1",
    "output.dense": "mlp.w2",
}
_CLASSES, _MASKED = "ViTForImageClassification", "ViTForMaskedImageModeling"
_HALF = [0.5, 0.5, 0.5]


def _from_config(fields: Fields) -> VisionConfig:
    masked = _MASKED in (fields.listed("architectures") or ())
    fields.must_be("num_channels", CHANNELS)
    fields.must_be("qkv_bias", True)
    fields.must_be("is_encoder_decoder", False)
    fields.harmless("pooler_act", "pooler_output_size")
    patch = pictures.side(fields, "patch_size", 16)
    if masked:
        fields.must_be("encoder_stride", patch)
    fields.harmless("encoder_stride")
    mean, std = pictures.pixels_from(fields, _HALF, _HALF)
    return VisionConfig(
        image_size=pictures.side(fields, "image_size", 224),
        patch_size=patch,
        layers=fields.integer("num_hidden_layers", 12),
        hidden=fields.integer("hidden_size", 768),
        heads=fields.integer("num_attention_heads", 12),
        ffn_hidden=fields.integer("intermediate_size", 3072),
        activation=fields.choice("hidden_act", "gelu", pictures.ACTIVATIONS),
        class_token=True,
        pool="class",
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        head="pixels" if masked else "classes",
        classes=fields.size("id2label", fields.integer("num_labels", 2)),
        init_std=fields.number("initializer_range", 0.02),
        pixel_mean=mean,
        pixel_std=std,
    )


def _to_config(cfg: VisionConfig, context: int) -> dict[str, Any]:
    labels = (
        {str(number): f"LABEL_{number}" for number in range(cfg.classes)} if cfg.head == "classes" else {}
    )
    return {
        "hidden_size": cfg.hidden,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn_width,
        "hidden_act": pictures.THEIR_ACTIVATIONS[cfg.activation],
        "initializer_range": cfg.init_std,
        "layer_norm_eps": cfg.norm_eps,
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "num_channels": CHANNELS,
        "qkv_bias": True,
        "encoder_stride": cfg.patch_size,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
        **({"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}} if labels else {}),
    }


def _mapped(cfg: VisionConfig) -> list[Mapped]:
    hidden, patch, positions = cfg.hidden, cfg.patch_size, cfg.pictures().positions
    at = "vit.embeddings"
    kernel = (hidden, CHANNELS, patch, patch)
    found = [
        reshaped("embed.tokens", (1, hidden), f"{at}.cls_token", (1, 1, hidden)),
        reshaped("embed.places", (positions, hidden), f"{at}.position_embeddings", (1, positions, hidden)),
        reshaped(
            "embed.project.weight",
            (hidden, cfg.patch_values),
            f"{at}.patch_embeddings.projection.weight",
            kernel,
        ),
        same("embed.project.bias", f"{at}.patch_embeddings.projection.bias", (hidden,)),
    ]
    for layer in range(cfg.layers):
        theirs = f"vit.encoder.layer.{layer}"
        found += pictures.block(f"layers.{layer}", theirs, _BLOCK, hidden, cfg.ffn_width)
    found += pictures.both("norm", "vit.layernorm", (hidden,))
    if cfg.head == "classes":
        found += pictures.both("head.layers.0", "classifier", (cfg.classes, hidden))
    else:
        values = cfg.patch_values
        found += [
            reshaped("embed.masked", (1, hidden), f"{at}.mask_token", (1, 1, hidden)),
            reshaped("head.project.weight", (values, hidden), "decoder.0.weight", (values, hidden, 1, 1)),
            same("head.project.bias", "decoder.0.bias", (values,)),
        ]
    return found


def _preprocessor(cfg: VisionConfig) -> dict[str, Any]:
    return pictures.preprocessor("ViTImageProcessor", cfg.image_size, cfg.pixel_mean, cfg.pixel_std)


def _family(architecture: str) -> Family:
    return Family(
        architecture=architecture,
        model_type="vit",
        config=VisionConfig,
        to_config=_to_config,
        from_config=_from_config,
        mapped=_mapped,
        base="vit.",
        preprocessor=_preprocessor,
    )


VIT, VIT_MASKED = _family(_CLASSES), _family(_MASKED)
