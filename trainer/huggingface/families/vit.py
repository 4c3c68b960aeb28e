"""ViT that tells classes of pictures apart, or that predicts masked patches (SimMIM); and I-JEPA's, which has
no class token and takes the mean of the patches. Imports no torch.

A convolution whose stride is its kernel is our matrix on patches: its weights are in the same order.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from trainer.huggingface.families import pictures
from trainer.huggingface.families.family import Family
from trainer.huggingface.families.labels import classes_from, unnamed
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, both, reshaped, same
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
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def _from_config(fields: Fields, *, mean: bool) -> VisionConfig:
    masked = _MASKED in (fields.listed("architectures") or ())
    fields.must_be("num_channels", CHANNELS)
    fields.must_be("qkv_bias", True)
    fields.must_be("is_encoder_decoder", False)
    fields.harmless("pooler_act", "pooler_output_size")
    patch = pictures.side(fields, "patch_size", 16)
    if masked:
        fields.must_be("encoder_stride", patch)
    fields.harmless("encoder_stride")
    pixel_mean, pixel_std = pictures.pixels_from(fields, *(_IMAGENET if mean else (_HALF, _HALF)))
    return VisionConfig(
        image_size=pictures.side(fields, "image_size", 224),
        patch_size=patch,
        layers=fields.integer("num_hidden_layers", 12),
        hidden=fields.integer("hidden_size", 768),
        heads=fields.integer("num_attention_heads", 12),
        ffn_hidden=fields.integer("intermediate_size", 3072),
        activation=fields.choice("hidden_act", "gelu", pictures.ACTIVATIONS),
        class_token=not mean,
        pool="mean" if mean else "class",
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        head="pixels" if masked else "classes",
        classes=classes_from(fields),
        init_std=fields.number("initializer_range", 0.02),
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
    )


def _to_config(cfg: VisionConfig, context: int) -> dict[str, Any]:
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
        **(unnamed(cfg.classes) if cfg.head == "classes" else {}),
    }


def _mapped(cfg: VisionConfig, *, base: str) -> list[Mapped]:
    hidden, patch, positions = cfg.hidden, cfg.patch_size, cfg.pictures().positions
    at = f"{base}embeddings"
    kernel = (hidden, CHANNELS, patch, patch)
    found = [
        reshaped("embed.places", (positions, hidden), f"{at}.position_embeddings", (1, positions, hidden)),
        reshaped(
            "embed.project.weight",
            (hidden, cfg.patch_values),
            f"{at}.patch_embeddings.projection.weight",
            kernel,
        ),
        same("embed.project.bias", f"{at}.patch_embeddings.projection.bias", (hidden,)),
    ]
    if cfg.class_token:
        found.append(reshaped("embed.tokens", (1, hidden), f"{at}.cls_token", (1, 1, hidden)))
    for layer in range(cfg.layers):
        theirs = f"{base}encoder.layer.{layer}"
        found += pictures.block(f"layers.{layer}", theirs, _BLOCK, hidden, cfg.ffn_width)
    found += both("norm", f"{base}layernorm", (hidden,))
    if cfg.head == "classes":
        found += both("head.layers.0", "classifier", (cfg.classes, hidden))
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


def _family(architecture: str, model_type: str = "vit") -> Family:
    base = f"{model_type}."
    return Family(
        architecture=architecture,
        model_type=model_type,
        config=VisionConfig,
        to_config=_to_config,
        from_config=partial(_from_config, mean=model_type == "ijepa"),
        mapped=partial(_mapped, base=base),
        base=base,
        preprocessor=_preprocessor,
    )


VIT, VIT_MASKED, IJEPA = _family(_CLASSES), _family(_MASKED), _family("IJepaForImageClassification", "ijepa")
