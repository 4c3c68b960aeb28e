"""Two towers with the embeddings, scores and losses of transformers' CLIP and SigLIP."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.config import DataConfig, Source
from trainer.config import checks
from trainer.config.run_config import RunConfig
from trainer.models.build import build_model
from trainer.models.towers.image_text import ImageText
from trainer.models.towers.image_text_config import ImageTextConfig, ImageTowerConfig, TextTowerConfig
from trainer.models.vision.config import VisionConfig
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.contrastive import Clip, Compares, Siglip
from trainer.objectives.contrastive_config import ClipConfig, ContrastiveConfig, SiglipConfig

SEQ, ROWS, VOCAB = 10, 3, 60
EOS = 1
TEXT = {"layers": 3, "hidden": 24, "heads": 3, "ffn_hidden": 40, "max_positions": SEQ}
IMAGE = {"layers": 2, "hidden": 32, "heads": 4, "ffn_hidden": 48, "image_size": 24, "patch_size": 8}
CLIP = ImageTextConfig(
    vocab=VOCAB,
    embedding=16,
    text=TextTowerConfig(**TEXT),
    image=ImageTowerConfig(**IMAGE),  # type: ignore[arg-type]
)
SIGLIP = ImageTextConfig(
    vocab=VOCAB,
    embedding=32,
    learnt="scale_bias",
    text=TextTowerConfig(
        **TEXT,
        activation="gelu_tanh",
        causal=False,
        project="linear_bias",
        norm_eps=1e-6,  # type: ignore[arg-type]
    ),
    image=ImageTowerConfig(
        **IMAGE,  # type: ignore[arg-type]
        activation="gelu_tanh",
        class_token=False,
        pool="attention",
        project="none",
        patch_bias=True,
        embed_norm=False,
        norm_eps=1e-6,
        pixel_mean=[0.5] * 3,
        pixel_std=[0.5] * 3,
    ),
)
BLOCK = {
    "layer_norm1": "attention_norm", "layer_norm2": "mlp_norm", "mlp.fc1": "mlp.w1", "mlp.fc2": "mlp.w2",
    **{f"self_attn.{k}_proj": f"attention.w{k}" for k in "qkv"}, "self_attn.out_proj": "attention.wo",
}  # fmt: skip
KINDS = ("weight", "bias")


def drawn(cfg: ImageTextConfig) -> ImageText:
    torch.manual_seed(0)
    model = build_model(cfg)
    assert isinstance(model, ImageText)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # a norm or a bias that is missing would not be seen
            nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(lengths: list[int]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    length = torch.tensor(lengths)
    place = torch.arange(SEQ).expand(len(lengths), SEQ)
    tokens = torch.randint(2, VOCAB, (len(lengths), SEQ), generator=draw)
    tokens[place == length[:, None] - 1] = EOS
    padding = place >= length[:, None]
    return {
        "tokens": tokens.masked_fill(padding, 0),
        "documents": padding.long(),
        "length": length,
        "image": torch.randint(256, (len(lengths), 1, 24, 24, 3), generator=draw, dtype=torch.uint8),
    }


def pixels(image: Tensor, cfg: ImageTextConfig) -> Tensor:
    mean, std = (torch.tensor(values).double() for values in (cfg.image.pixel_mean, cfg.image.pixel_std))
    return ((image[:, 0].double() / 255 - mean) / std).permute(0, 3, 1, 2).float()


def shared_state(model: ImageText) -> dict[str, Tensor]:
    """The parameters that their CLIP and SigLIP have under one name."""
    own = model.state_dict()
    state = {
        "text_model.embeddings.token_embedding.weight": own["text.embed.weight"],
        "text_model.embeddings.position_embedding.weight": own["text.places.weight"],
        "vision_model.embeddings.position_embedding.weight": own["image.embed.places"],
        "vision_model.embeddings.patch_embedding.weight": own["image.embed.project.weight"].unflatten(
            1, (3, 8, 8)
        ),
    }
    for kind in KINDS:
        state[f"text_model.final_layer_norm.{kind}"] = own[f"text.norm.{kind}"]
        state[f"vision_model.post_layernorm.{kind}"] = own[f"image.norm.{kind}"]
        for theirs, ours in (("text", "text"), ("vision", "image")):
            for layer in model.get_submodule(f"{ours}.layers"):  # type: ignore[attr-defined]
                for their_name, name in BLOCK.items():
                    at = f"{theirs}_model.encoder.layers.{layer}.{their_name}.{kind}"
                    state[at] = own[f"{ours}.layers.{layer}.{name}.{kind}"]
    return state


def sizes(tower: Any, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": tower.hidden,
        "intermediate_size": tower.ffn_hidden,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": activation,
    }


def their_clip(model: ImageText) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    cfg, own = model.cfg, model.state_dict()
    text = {"vocab_size": VOCAB, "max_position_embeddings": SEQ, "eos_token_id": EOS, "pad_token_id": 0}
    theirs = CLIPModel(
        CLIPConfig(
            text_config=sizes(cfg.text, "quick_gelu") | text,
            vision_config=sizes(cfg.image, "quick_gelu") | {"image_size": 24, "patch_size": 8},
            projection_dim=cfg.embedding,
        )
    )
    state = shared_state(model) | {
        "vision_model.embeddings.class_embedding": own["image.embed.tokens"][0],
        "visual_projection.weight": own["image.head.layers.0.weight"],
        "text_projection.weight": own["text.head.project.weight"],
        "logit_scale": own["text.head.log_scale"][0],
        **{f"vision_model.pre_layrnorm.{kind}": own[f"image.embed.norm.{kind}"] for kind in KINDS},
    }
    theirs.load_state_dict(state)
    return theirs.eval()


def their_siglip(model: ImageText) -> nn.Module:
    from transformers import SiglipConfig as TheirConfig
    from transformers import SiglipModel

    cfg, own = model.cfg, model.state_dict()
    text = {"vocab_size": VOCAB, "max_position_embeddings": SEQ, "projection_size": cfg.embedding}
    theirs = SiglipModel(
        TheirConfig(
            text_config=sizes(cfg.text, "gelu_pytorch_tanh") | text,
            vision_config=sizes(cfg.image, "gelu_pytorch_tanh") | {"image_size": 24, "patch_size": 8},
        )
    )
    pool, head = "image.head.pool", "vision_model.head"
    state = shared_state(model) | {
        "logit_scale": own["text.head.log_scale"],
        "logit_bias": own["text.head.score_bias"],
        f"{head}.probe": own[f"{pool}.query"][None],
        "vision_model.embeddings.patch_embedding.bias": own["image.embed.project.bias"],
    }
    for kind in KINDS:
        state[f"text_model.head.{kind}"] = own[f"text.head.project.{kind}"]
        parts = [own[f"{pool}.w{k}.{kind}"] for k in "qkv"]
        state[f"{head}.attention.in_proj_{kind}"] = torch.cat(parts)
        state[f"{head}.attention.out_proj.{kind}"] = own[f"{pool}.wo.{kind}"]
        state[f"{head}.layernorm.{kind}"] = own[f"{pool}.mlp_norm.{kind}"]
        for number in (1, 2):
            state[f"{head}.mlp.fc{number}.{kind}"] = own[f"{pool}.mlp.w{number}.{kind}"]
    theirs.load_state_dict(state)
    return theirs.eval()


def context(cfg: ImageTextConfig) -> ObjectiveContext:
    return ObjectiveContext(0, SEQ, VOCAB, 0, bytes, cfg)


@pytest.mark.parametrize(
    ("cfg", "theirs", "objective", "lengths"),
    [
        (CLIP, their_clip, Clip(ClipConfig(), context(CLIP)), [10, 4, 1]),
        (SIGLIP, their_siglip, Siglip(SiglipConfig(), context(SIGLIP)), [10, 10, 10]),
    ],
    ids=["clip", "siglip"],
)
def test_embeddings_scores_and_loss_are_theirs(
    cfg: ImageTextConfig, theirs: Any, objective: Compares, lengths: list[int]
) -> None:
    model, given = drawn(cfg), batch(lengths)
    inputs = objective.inputs(given, tuple(range(ROWS)))
    output = model(inputs.x, **inputs.kwargs)
    text, image = objective.sides(output)
    found = theirs(model)(
        input_ids=given["tokens"],
        pixel_values=pixels(given["image"], cfg),
        attention_mask=1 - given["documents"],
        return_loss=True,
    )
    assert torch.allclose(text, found.text_embeds, rtol=1e-5, atol=1e-5)
    assert torch.allclose(image, found.image_embeds, rtol=1e-5, atol=1e-5)
    learnt = output[0, 2 * cfg.embedding :]
    scores = learnt[0].exp() * text @ image.T + (learnt[1] if len(learnt) > 1 else 0.0)
    assert torch.allclose(scores, found.logits_per_text, rtol=1e-5, atol=1e-5)
    losses, counts = objective.loss(output, inputs)
    assert torch.allclose(losses.sum() / counts.sum(), found.loss, rtol=1e-5)


@pytest.mark.parametrize("cfg", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_two_halves_chained_are_the_whole(cfg: ImageTextConfig) -> None:
    whole, first, second = (drawn(cfg) for _ in range(3))
    for tower in (first.text, first.image):
        tower.norm = tower.head = None  # type: ignore[assignment]
    second.text.embed = second.text.places = second.image.embed = None
    for tower in ("text", "image"):
        for key in list(whole.get_submodule(f"{tower}.layers")):  # type: ignore[call-overload]
            del (first if int(key) >= 1 else second).get_submodule(f"{tower}.layers")[key]  # type: ignore[operator]
    objective, given = Clip(ClipConfig(), context(cfg)), batch([10, 4, 7])
    inputs = objective.inputs(given, (0, 1, 2))
    hidden = first(inputs.x, **inputs.kwargs)
    assert hidden.shape == cfg.plan().hidden_shape(tuple(inputs.x.shape))
    assert cfg.hidden_elements(SEQ) == hidden.shape[1]
    assert torch.equal(second(hidden, **inputs.kwargs), whole(inputs.x, **inputs.kwargs))


@pytest.mark.parametrize("cfg", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_its_facts_are_the_models(cfg: ImageTextConfig) -> None:
    model, plan = drawn(cfg), cfg.plan()
    assert cfg.parameters().total == sum(p.numel() for p in model.parameters())
    for name, parameter in model.named_parameters():
        assert plan.block_of(name) or name.startswith((*plan.first, *plan.last)), name
        assert plan.init(name, tuple(parameter.shape)).kind
    assert plan.block_of("image.layers.1.mlp.w1.weight") == "image.layers.1"
    assert dict(cfg.block_counts()) == {"model.text.layers": 3, "model.image.layers": 2}
    blocks = [n for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2 and "head" not in n]
    matrices = {
        t: sum(model.get_parameter(n).numel() for n in blocks if n.startswith(t)) for t in ("text", "image")
    }
    flops = cfg.training_flops(SEQ).total
    positions = cfg.pictures().positions
    products = 6 * (SEQ * matrices["text"] + positions * matrices["image"])
    scores = 12 * (3 * 24 * SEQ**2 + 2 * 32 * positions**2)
    assert 0 < flops - products - scores < 0.2 * flops, "and the patches and the heads"


def test_the_published_sizes() -> None:
    assert ImageTextConfig().parameters().total == 151_277_313  # CLIP ViT-B/32
    wide = {"hidden": 768, "heads": 12, "ffn_hidden": 3072}
    siglip = replace(
        SIGLIP,
        vocab=32000,
        embedding=768,
        text=replace(SIGLIP.text, **wide, layers=12, max_positions=64),
        image=replace(SIGLIP.image, **wide, layers=12, image_size=224, patch_size=16),
    )
    assert siglip.parameters().total == 203_155_970  # siglip-base-patch16-224


def test_what_does_not_go_together_is_refused_by_name() -> None:
    for cfg, words in (
        (replace(CLIP, text=replace(CLIP.text, heads=5)), r"model.text.hidden: 24 .* model.text.heads 5"),
        (replace(CLIP, image=replace(CLIP.image, heads=5)), r"model.image.hidden: 32 .* model.image.heads 5"),
        (replace(CLIP, image=replace(CLIP.image, class_token=False)), r"model.image.pool=class needs"),
        (replace(SIGLIP, embedding=16), r"model.image.project=none: model.image.hidden=32 must be"),
    ):
        with pytest.raises(ValueError, match=words):
            cfg.check()
    for sizes_, words in (
        ({"tp": 1, "cp": 2}, r"parallel.cp=2: a picture and its caption"),
        ({"tp": 2, "cp": 1}, r"model.text.heads=3 is not divisible by parallel.tp=2"),
    ):
        with pytest.raises(ValueError, match=words):
            CLIP.check_layout(**sizes_)
    with pytest.raises(ValueError, match=r"model.image.image_size=24: .* model.image.registers="):
        replace(CLIP, text=replace(CLIP.text, heads=4)).check_layout(tp=4, cp=1)
    with pytest.raises(ValueError, match=r"data.seq_len=11 is more than model.text.max_positions=10"):
        CLIP.check_seq_len(11)


def test_its_data_is_a_picture_of_its_size_and_a_caption() -> None:
    data = DataConfig([Source("x")], packing="one", seq_len=SEQ, image_size=24)
    cfg = RunConfig("run", CLIP, data, objective=ClipConfig())  # type: ignore[arg-type]
    checks.check(cfg)
    for change, words in (
        ({"image_size": 32}, r"data.image_size=32: the model's pictures have 24 pixels a side"),
        ({"image_views": 2}, r"data.image_views=2: the objective takes 1 of each picture"),
    ):
        with pytest.raises(ValueError, match=words):
            checks.check(replace(cfg, data=replace(data, **change)))
    vision = VisionConfig(image_size=24, patch_size=8, hidden=32, heads=4, head="embedding")
    views = replace(cfg, model=vision, objective=ContrastiveConfig(negatives="both_sides"))
    checks.check(replace(views, data=replace(data, image_views=2)))
    with pytest.raises(ValueError, match=r"data.image_views=1: the objective takes 2 of each picture"):
        checks.check(views)
    with pytest.raises(ValueError, match=r"model.head=classes: objective.kind=contrastive needs"):
        checks.check(replace(views, model=replace(vision, head="classes")))
