"""CLIP and SigLIP: a tower for pictures and one for texts. Imports no torch."""

from __future__ import annotations

from functools import partial
from typing import Any

from trainer.huggingface.families import pictures
from trainer.huggingface.families.family import Family
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, both, reshaped, same, stacked
from trainer.models.towers.image_text_config import ImageTextConfig, ImageTowerConfig, TextTowerConfig
from trainer.models.vision.config import CHANNELS

_BLOCK = {
    "layer_norm1": "attention_norm",
    "layer_norm2": "mlp_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.out_proj": "attention.wo",
    "mlp.fc1": "mlp.w1",
    "mlp.fc2": "mlp.w2",
}
_KINDS = ("weight", "bias")
_OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


def _from_config(fields: Fields, *, siglip: bool) -> ImageTextConfig:
    text, image = fields.inner("text_config"), fields.inner("vision_config")
    fields.harmless("initializer_factor", "logit_scale_init_value", "initializer_range")
    fields.must_be("is_encoder_decoder", False)
    for tower in (text, image):
        tower.harmless("initializer_factor", "initializer_range")
        if not siglip:
            tower.harmless("projection_dim")  # the one beside the towers counts
    image.must_be("num_channels", CHANNELS)
    if siglip:
        image.must_be("vision_use_head", True)
    act, eps = ("gelu_pytorch_tanh", 1e-6) if siglip else ("quick_gelu", 1e-5)
    wide = text.integer("hidden_size", 768 if siglip else 512)
    made_text = TextTowerConfig(
        layers=text.integer("num_hidden_layers", 12),
        hidden=wide,
        heads=text.integer("num_attention_heads", 12 if siglip else 8),
        ffn_hidden=text.integer("intermediate_size", 3072 if siglip else 2048),
        activation=text.choice("hidden_act", act, pictures.ACTIVATIONS),
        max_positions=text.integer("max_position_embeddings", 64 if siglip else 77),
        causal=not siglip,
        project="linear_bias" if siglip else "linear",
        norm_eps=text.number("layer_norm_eps", eps),
    )
    mean, std = pictures.pixels_from(fields, *(_HALF if siglip else _OPENAI))
    made_image = ImageTowerConfig(
        image_size=pictures.side(image, "image_size", 224),
        patch_size=pictures.side(image, "patch_size", 16 if siglip else 32),
        layers=image.integer("num_hidden_layers", 12),
        hidden=image.integer("hidden_size", 768),
        heads=image.integer("num_attention_heads", 12),
        ffn_hidden=image.integer("intermediate_size", 3072),
        activation=image.choice("hidden_act", act, pictures.ACTIVATIONS),
        class_token=not siglip,
        pool="attention" if siglip else "class",
        project="none" if siglip else "linear",
        patch_bias=siglip,
        embed_norm=not siglip,
        norm_eps=image.number("layer_norm_eps", eps),
        pixel_mean=mean,
        pixel_std=std,
    )
    found = ImageTextConfig(
        vocab=text.integer("vocab_size", 32000 if siglip else 49408),
        embedding=text.integer("projection_size", wide) if siglip else fields.integer("projection_dim", 512),
        text=made_text,
        image=made_image,
        learnt="scale_bias" if siglip else "scale",
    )
    text.finish()
    image.finish()
    return found


def _to_config(cfg: ImageTextConfig, context: int, *, siglip: bool) -> dict[str, Any]:
    text, image = (
        {
            "hidden_size": tower.hidden,
            "intermediate_size": tower.ffn_hidden or 4 * tower.hidden,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": pictures.THEIR_ACTIVATIONS[tower.activation],
            "layer_norm_eps": tower.norm_eps,
            "attention_dropout": 0.0,
        }
        for tower in (cfg.text, cfg.image)
    )
    text |= {"vocab_size": cfg.vocab, "max_position_embeddings": cfg.text.max_positions}
    image |= {
        "image_size": cfg.image.image_size,
        "patch_size": cfg.image.patch_size,
        "num_channels": CHANNELS,
    }
    if siglip:
        return {
            "text_config": text | {"model_type": "siglip_text_model", "projection_size": cfg.embedding},
            "vision_config": image | {"model_type": "siglip_vision_model", "vision_use_head": True},
        }
    size = {"projection_dim": cfg.embedding}
    return {
        "text_config": text | {"model_type": "clip_text_model"} | size,
        "vision_config": image | {"model_type": "clip_vision_model"} | size,
        **size,
    }


def _mapped(cfg: ImageTextConfig, *, siglip: bool) -> list[Mapped]:
    text, image, vision = cfg.text, cfg.image, cfg.vision()
    wide, positions, patch = image.hidden, vision.pictures().positions, image.patch_size
    at, values = "vision_model.embeddings", vision.patch_values
    kernel = (wide, CHANNELS, patch, patch)
    found = [
        same("text.embed.weight", "text_model.embeddings.token_embedding.weight", (cfg.vocab, text.hidden)),
        same(
            "text.places.weight",
            "text_model.embeddings.position_embedding.weight",
            (text.max_positions, text.hidden),
        ),
        reshaped("image.embed.project.weight", (wide, values), f"{at}.patch_embedding.weight", kernel),
        same("image.embed.places", f"{at}.position_embedding.weight", (positions, wide)),
        *both("text.norm", "text_model.final_layer_norm", (text.hidden,)),
        *both("image.norm", "vision_model.post_layernorm", (wide,)),
    ]
    inner = {"text": text.ffn_width, "image": vision.ffn_width}
    for our, their, tower in (("text", "text", cfg.text), ("image", "vision", cfg.image)):
        for layer in range(tower.layers):
            theirs = f"{their}_model.encoder.layers.{layer}"
            found += pictures.block(f"{our}.layers.{layer}", theirs, _BLOCK, tower.hidden, inner[our])
    return found + (_siglips(cfg) if siglip else _clips(cfg))


def _clips(cfg: ImageTextConfig) -> list[Mapped]:
    wide = cfg.image.hidden
    return [
        reshaped("image.embed.tokens", (1, wide), "vision_model.embeddings.class_embedding", (wide,)),
        *both("image.embed.norm", "vision_model.pre_layrnorm", (wide,)),
        same("image.head.layers.0.weight", "visual_projection.weight", (cfg.embedding, wide)),
        same("text.head.project.weight", "text_projection.weight", (cfg.embedding, cfg.text.hidden)),
        reshaped("text.head.log_scale", (1,), "logit_scale", ()),
    ]


def _siglips(cfg: ImageTextConfig) -> list[Mapped]:
    wide, inner = cfg.image.hidden, cfg.vision().ffn_width
    our, their = "image.head.pool", "vision_model.head"
    three = [f"{our}.w{name}" for name in "qkv"]
    found = [
        same("image.embed.project.bias", "vision_model.embeddings.patch_embedding.bias", (wide,)),
        *both("text.head.project", "text_model.head", (cfg.embedding, cfg.text.hidden)),
        reshaped(f"{our}.query", (1, wide), f"{their}.probe", (1, 1, wide)),
        *both(f"{our}.wo", f"{their}.attention.out_proj", (wide, wide)),
        *both(f"{our}.mlp_norm", f"{their}.layernorm", (wide,)),
        *both(f"{our}.mlp.w1", f"{their}.mlp.fc1", (inner, wide)),
        *both(f"{our}.mlp.w2", f"{their}.mlp.fc2", (wide, inner)),
        same("text.head.log_scale", "logit_scale", (1,)),
        same("text.head.score_bias", "logit_bias", (1,)),
    ]
    for kind in _KINDS:
        names = [f"{name}.{kind}" for name in three]
        width = [wide] if kind == "weight" else []
        found += stacked(names, [wide] * 3, width, f"{their}.attention.in_proj_{kind}")
    return found


def _preprocessor(cfg: ImageTextConfig, *, kind: str) -> dict[str, Any]:
    image = cfg.image
    return pictures.preprocessor(kind, image.image_size, image.pixel_mean, image.pixel_std)


def _family(architecture: str, model_type: str, processor: str) -> Family:
    siglip = model_type == "siglip"
    return Family(
        architecture=architecture,
        model_type=model_type,
        config=ImageTextConfig,
        to_config=partial(_to_config, siglip=siglip),
        from_config=partial(_from_config, siglip=siglip),
        mapped=partial(_mapped, siglip=siglip),
        preprocessor=partial(_preprocessor, kind=processor),
    )


CLIP = _family("CLIPModel", "clip", "CLIPImageProcessor")
SIGLIP = _family("SiglipModel", "siglip", "SiglipImageProcessor")
