"""ViT, SimMIM, CLIP's image tower, SigLIP's pooling: hidden states and logits of `transformers`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.models.vision.vision import Vision
from trainer.objectives.pictures import patches_of
from vision_models import CLASS, drawn, fed, images


def pixels(image: Tensor) -> Tensor:
    """What `transformers` is fed with: [rows, channels, height, width], (value / 255 - 0.5) / 0.5."""
    return (image[:, 0].double().permute(0, 3, 1, 2) / 255 - 0.5).div(0.5).float()


def block(own: dict[str, Tensor], layer: str, their: str, names: dict[str, str]) -> dict[str, Tensor]:
    """Their parameters of one block; `names`: their name → ours."""
    return {
        f"{their}.{theirs}.{kind}": own[f"{layer}.{ours}.{kind}"]
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }


VIT = {
    "layernorm_before": "attention_norm", "layernorm_after": "mlp_norm", "mlp.fc1": "mlp.w1",
    "mlp.fc2": "mlp.w2", "attention.q_proj": "attention.wq", "attention.k_proj": "attention.wk",
    "attention.v_proj": "attention.wv", "attention.o_proj": "attention.wo",
}  # fmt: skip


def vit(model: Vision, cls: str, **settings: Any) -> nn.Module:
    """Theirs, with this model's weights."""
    import transformers

    cfg, own = model.cfg, model.state_dict()
    theirs = getattr(transformers, cls)(
        transformers.ViTConfig(
            image_size=cfg.image_size,
            patch_size=cfg.patch_size,
            hidden_size=cfg.hidden,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            intermediate_size=cfg.ffn_width,
            hidden_act={"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[cfg.activation],
            layer_norm_eps=cfg.norm_eps,
            num_labels=cfg.classes,
            encoder_stride=cfg.patch_size,
        ),
        **settings,
    ).eval()
    state = {
        "embeddings.cls_token": own["embed.tokens"][None],
        "embeddings.position_embeddings": own["embed.places"][None],
        "embeddings.patch_embeddings.projection.weight": own["embed.project.weight"].unflatten(
            1, (3, cfg.patch_size, cfg.patch_size)
        ),
        "embeddings.patch_embeddings.projection.bias": own["embed.project.bias"],
        "layernorm.weight": own["norm.weight"],
        "layernorm.bias": own["norm.bias"],
    }
    for layer in range(cfg.layers):
        state |= block(own, f"layers.{layer}", f"layers.{layer}", VIT)
    if cls != "ViTModel":
        state = {f"vit.{name}": tensor for name, tensor in state.items()}
    if cls == "ViTForImageClassification":
        state |= {f"classifier.{kind}": own[f"head.layers.0.{kind}"] for kind in ("weight", "bias")}
    if cls == "ViTForMaskedImageModeling":
        state["vit.embeddings.mask_token"] = own["embed.masked"][None]
        state["decoder.0.weight"] = own["head.project.weight"][:, :, None, None]
        state["decoder.0.bias"] = own["head.project.bias"]
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_classes_are_those_of_vit(activation: str) -> None:
    model = drawn(**CLASS, activation=activation)
    x, kwargs = fed(model, images())
    with torch.no_grad():
        expected = vit(model, "ViTForImageClassification")(pixels(images())).logits
        assert torch.allclose(model(x, **kwargs), expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(model(x), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(x.flip(1)), expected, rtol=1e-2, atol=1e-2)


def test_hidden_states_are_those_of_vit_with_and_without_a_class_token() -> None:
    model = drawn(**CLASS)
    theirs = vit(model, "ViTModel", add_pooling_layer=False)
    expected = theirs(pixels(images())).last_hidden_state
    model.head = None
    x, kwargs = fed(model, images())
    assert torch.allclose(model(x, **kwargs), expected, rtol=1e-5, atol=1e-5)


def test_masked_patches_are_those_of_simmim() -> None:
    model = drawn(**{**CLASS, "head": "pixels"})
    theirs = vit(model, "ViTForMaskedImageModeling")
    hidden = torch.tensor([[0, 2, 5], [1, 4, 8]])
    mask = torch.zeros(2, 9, dtype=torch.bool).scatter_(1, hidden, True)
    x, kwargs = fed(model, images())
    with torch.no_grad():
        got = model(x, places=hidden + 1, **kwargs).unflatten(1, (3, -1))
        picture = theirs(pixels(images()), bool_masked_pos=mask).reconstruction
    expected = patches_of(picture.permute(0, 2, 3, 1)[:, None], 8)[:, 0]
    for row in range(2):
        assert torch.allclose(got[row], expected[row, hidden[row]], rtol=1e-5, atol=1e-5)
    # A place that is none masks nothing.
    fewer = torch.cat((hidden + 1, torch.full((2, 2), -1)), dim=1)
    with torch.no_grad():
        assert torch.equal(model(x, places=fewer, **kwargs)[:, : got[0].numel()], got.flatten(1))


def test_attention_pooling_is_that_of_siglip() -> None:
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    from trainer.models.vision.head import AttentionPool

    torch.manual_seed(0)
    own = AttentionPool(hidden=32, heads=4, ffn_hidden=48, activation="gelu_tanh", norm_eps=1e-6)
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = SiglipMultiheadAttentionPoolingHead(
        SiglipVisionConfig(hidden_size=32, num_attention_heads=4, intermediate_size=48)
    )
    state = own.state_dict()
    theirs.load_state_dict(
        {
            "probe": state["query"][None],
            "attention.in_proj_weight": torch.cat([state[f"{name}.weight"] for name in ("wq", "wk", "wv")]),
            "attention.in_proj_bias": torch.cat([state[f"{name}.bias"] for name in ("wq", "wk", "wv")]),
            **{f"attention.out_proj.{kind}": state[f"wo.{kind}"] for kind in ("weight", "bias")},
            **{f"layernorm.{kind}": state[f"mlp_norm.{kind}"] for kind in ("weight", "bias")},
            **{f"mlp.fc1.{kind}": state[f"mlp.w1.{kind}"] for kind in ("weight", "bias")},
            **{f"mlp.fc2.{kind}": state[f"mlp.w2.{kind}"] for kind in ("weight", "bias")},
        }
    )
    x = torch.randn(2, 9, 32)
    assert torch.allclose(own(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_an_image_tower_is_that_of_clip() -> None:
    """No bias on patches, a norm before the blocks, QuickGELU, a projection without a bias."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    model = drawn(**{
        **CLASS, "patch_bias": False, "embed_norm": True, "activation": "quick_gelu", "norm_eps": 1e-5,
        "head": "embedding", "embedding": 12,
    })  # fmt: skip
    cfg, own = model.cfg, model.state_dict()
    theirs = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=128,
            projection_dim=12,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=24,
            patch_size=8,
            hidden_act="quick_gelu",
        )
    ).eval()
    at = "vision_model."
    state = {
        f"{at}embeddings.class_embedding": own["embed.tokens"][0],
        f"{at}embeddings.patch_embedding.weight": own["embed.project.weight"].unflatten(1, (3, 8, 8)),
        f"{at}embeddings.position_embedding.weight": own["embed.places"],
        "visual_projection.weight": own["head.layers.0.weight"],
    }
    for kind in ("weight", "bias"):
        state[f"{at}pre_layrnorm.{kind}"] = own[f"embed.norm.{kind}"]
        state[f"{at}post_layernorm.{kind}"] = own[f"norm.{kind}"]
    names = {
        "layer_norm1": "attention_norm", "layer_norm2": "mlp_norm", "mlp.fc1": "mlp.w1", "mlp.fc2": "mlp.w2",
        **{f"self_attn.{k}_proj": f"attention.w{k}" for k in "qkv"}, "self_attn.out_proj": "attention.wo",
    }  # fmt: skip
    for layer in range(cfg.layers):
        state |= block(own, f"layers.{layer}", f"{at}encoder.layers.{layer}", names)
    theirs.load_state_dict(state)
    x, kwargs = fed(model, images())
    assert torch.allclose(model(x, **kwargs), theirs(pixels(images())).image_embeds, rtol=1e-5, atol=1e-5)
