"""The vision transformer: logits of `transformers`, its heads, its parts, what its config refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.models.vision.config import VisionConfig
from trainer.models.vision.embedding import sines_2d
from trainer.models.vision.vision import Vision
from trainer.objectives.pictures import patches_of, picture_inputs

SIZES: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 8,
    "layers": 3,
    "hidden": 32,
    "heads": 4,
    "classes": 7,
}
CLASS: dict[str, Any] = {**SIZES, "class_token": True, "pool": "class"}


def drawn(**keys: Any) -> Vision:
    torch.manual_seed(0)
    model = Vision(VisionConfig(**keys))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # a norm or a bias that is missing would not be seen
            nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else nn.init.normal_(parameter, std=0.3)
    return model


def images(rows: int = 2, views: int = 1, size: int = 24) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(256, (rows, views, size, size, 3), generator=draw, dtype=torch.uint8)


def fed(model: Vision, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    inputs = picture_inputs(image, model.cfg.pictures())
    return inputs.x, inputs.kwargs


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


def test_positions_are_those_of_mae() -> None:
    """As in MAE's code: sines and cosines of the column, then of the row, 10000^(-i / 8)."""
    expected = torch.tensor([
        [f(at / 10000 ** (i / 8)) for at in (column, row) for f in (math.sin, math.cos) for i in range(8)]
        for row in range(3)
        for column in range(3)
    ])  # fmt: skip
    assert torch.allclose(sines_2d(3, 32).float(), expected, rtol=1e-6, atol=1e-7)
    model = drawn(**{**CLASS, "positions": "sincos"})
    assert "embed.places" not in model.state_dict()
    own = drawn(**CLASS)
    table = torch.cat((torch.zeros(1, 32), expected))
    own.load_state_dict(model.state_dict() | {"embed.places": table})
    x, kwargs = fed(model, images())
    assert torch.allclose(model(x, **kwargs), own(x, **kwargs), rtol=1e-5, atol=1e-6)


def test_pooling_is_what_it_is_said_to_be() -> None:
    model = drawn(**{**SIZES, "registers": 2})
    x, kwargs = fed(model, images())
    states = Vision(model.cfg)
    states.load_state_dict(model.state_dict())
    states.head = None
    layer = model.head.layers[0]  # type: ignore[union-attr, index]
    pooled = states(x, **kwargs)[:, 2:].mean(dim=1)
    assert torch.allclose(model(x, **kwargs), layer(pooled), rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("prefix", [{}, {"class_token": True, "registers": 2, "pool": "class"}])
def test_two_views_are_as_if_alone(prefix: dict[str, Any]) -> None:
    model = drawn(**{**SIZES, **prefix, "head": "embedding", "embedding": 6, "embedding_hidden": 20})
    both = images(views=2)
    x, kwargs = fed(model, both)
    got = model(x, **kwargs)
    assert got.shape == (2, 12)
    alone = [model(*fed(model, both[:, view : view + 1])[:1]) for view in range(2)]
    assert torch.allclose(got, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-6)


def test_two_halves_chained_are_the_whole() -> None:
    whole, first, second = (drawn(**CLASS) for _ in range(3))
    first.norm = first.head = None
    second.embed = None
    for key in list(whole.layers):
        del (first if int(key) >= 1 else second).layers[key]
    x, kwargs = fed(whole, images())
    assert torch.equal(second(first(x, **kwargs), **kwargs), whole(x, **kwargs))


MODELS = [
    SIZES,
    CLASS,
    {**CLASS, "registers": 3, "positions": "sincos", "ffn_hidden": 40},
    {**SIZES, "pool": "attention", "patch_bias": False, "embed_norm": True},
    {**SIZES, "head": "pixels"},
    {**SIZES, "head": "embedding", "embedding": 0, "pool": "attention"},
    {**SIZES, "head": "embedding", "embedding": 5, "embedding_hidden": 9},
]


@pytest.mark.parametrize("keys", MODELS)
def test_the_config_knows_the_model(keys: dict[str, Any]) -> None:
    model = drawn(**keys)
    cfg, parts = model.cfg, model.cfg.parameters()
    counted = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert (parts.first, parts.blocks * parts.block) == (counted["embed"], counted["layers"])
    assert parts.last == counted["norm"] + counted["head"]
    assert cfg.hidden_elements(0) == cfg.positions_of_row(0) * 32
    x, kwargs = fed(model, images())
    places = {"places": torch.arange(4).expand(2, 4)} if cfg.head == "pixels" else {}
    model(x, **kwargs, **places).sum().backward()
    left_out = [name for name, p in model.named_parameters() if p.grad is None]
    assert not left_out


@pytest.mark.parametrize(("keys", "layout", "message"), [
    ({"patch_size": 7}, {}, "model.image_size: 24 is not a multiple of model.patch_size 7"),
    ({"heads": 5}, {}, "model.hidden: 32 is not divisible by model.heads 5"),
    ({"hidden": 36, "heads": 2, "positions": "sincos"}, {}, ""),
    ({"hidden": 34, "heads": 2, "positions": "sincos"}, {}, "34 is not divisible by 4, which"),
    ({"embedding_hidden": 8, "embedding": 0}, {}, "model.embedding_hidden: 8 needs model.embedding"),
    ({}, {"tp": 2}, "3 · 3 patches = 9 positions are not divisible by parallel.tp=2 · parallel.cp=1"),
    ({}, {"tp": 2}, "set model.registers=1"),
    ({"registers": 1}, {"tp": 2}, ""),
    ({"class_token": True, "registers": 1}, {"tp": 4}, "set model.registers=2"),
    ({"registers": 1}, {"cp": 2}, "parallel.cp=2: model.head=classes pools all positions"),
    ({"head": "pixels", "registers": 1}, {"cp": 2}, ""),
    ({}, {"tp": 3}, "model.heads=4 is not divisible by parallel.tp=3"),
])  # fmt: skip
def test_what_does_not_go_is_one_line(keys: dict[str, Any], layout: dict[str, int], message: str) -> None:
    cfg = VisionConfig(**(SIZES | keys))

    def check() -> None:
        cfg.check()
        cfg.check_layout(**({"tp": 1, "cp": 1} | layout))

    if not message:
        check()
        return
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        check()
    assert message in str(caught.value)


def test_published_sizes() -> None:
    """ViT-B/16 as transformers' google/vit-base-patch16-224 has it: 86,567,656 parameters; 17.6 GFLOPs."""
    base = VisionConfig(layers=12, hidden=768, heads=12, class_token=True, pool="class")
    assert base.parameters().total == 86_567_656
    assert base.training_flops(0).total / 6 == pytest.approx(17.58e9, rel=0.01)
