"""docs/examples: models from outside the project, found by their kind, on the layouts that they are for."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from picture_runs import ROOT, PictureCase, curve, reference, section
from runs import distance
from trainer.models.build import build_model

TOLERANCE = 1e-5
CONVNEXT: dict[str, Any] = {
    "kind": "convnext.config:ConvNeXtConfig", "image_size": 16, "depths": [1, 2, 1], "widths": [8, 16, 24],
    "classes": 5, "layer_scale": 0.5,
}  # fmt: skip
PARALLEL: dict[str, Any] = {
    "kind": "parallel_decoder.config:ParallelDecoderConfig", "layers": 2, "hidden": 32, "heads": 4,
    "kv_heads": 2, "ffn_hidden": 48, "vocab": 128, "branch_scale": 0.7,
}  # fmt: skip
CLASSES = {"kind": "classification"}


@pytest.fixture(autouse=True)
def in_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT / "docs/examples")


def more(*layouts: tuple[int, dict[str, Any]]) -> list[Any]:
    return [pytest.param(*one, marks=pytest.mark.slow) for one in layouts]


def label(value: Any) -> str | None:
    return "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None


def check(ranks: Any, world: int, case: PictureCase) -> None:
    curves = ranks(world).run(curve, case)
    assert all(other == curves[0] for other in curves[1:])
    expected = reference(case)
    assert distance(curves[0], expected) < TOLERANCE
    assert expected[-1][0] < expected[0][0]


@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("world", "parallel"),
    [(4, {"tp": 2, "zero": 1}), (2, {"pp": 2}), *more((2, {"tp": 2}), (2, {"cp": 2}), (2, {"zero": 3}))],
    ids=label,
)
def test_a_decoder_with_a_block_of_its_own(
    ranks: Any, world: int, parallel: dict[str, Any], steps: int
) -> None:
    micro_batch = 1 if world == 4 else 2
    check(
        ranks,
        world,
        PictureCase(
            PARALLEL, {"kind": "causal_lm"}, parallel, tokens=True, steps=steps, micro_batch=micro_batch
        ),
    )


@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"zero": 2}),
        (2, {"pp": 2}),
        (4, {"pp": 2, "zero": 3}),
        *more(*((2, {"zero": zero}) for zero in (0, 1, 3)), (2, {"pp": 2, "schedule": "zbv_zero_bubble"})),
    ],
    ids=label,
)
def test_a_convolutional_encoder(ranks: Any, world: int, parallel: dict[str, Any], steps: int) -> None:
    micro_batch = 1 if world == 4 else 2
    check(ranks, world, PictureCase(CONVNEXT, CLASSES, parallel, steps=steps, micro_batch=micro_batch))


def test_its_layout_is_refused_by_its_own_words() -> None:
    with pytest.raises(
        ValueError, match=r"^parallel.tp=2, parallel.cp=1: convolutions are not split over ranks"
    ):
        section("model", CONVNEXT).check_layout(tp=2, cp=1)
    with pytest.raises(ValueError, match=r"^model.image_size=20: not a multiple of 16"):
        section("model", CONVNEXT | {"image_size": 20}).check()


@pytest.mark.parametrize("model", [CONVNEXT, PARALLEL])
def test_their_sizes_are_as_their_configs_say(model: dict[str, Any]) -> None:
    cfg = section("model", model)
    assert sum(p.numel() for p in build_model(cfg).parameters()) == cfg.parameters().total
    assert section("model", {"kind": CONVNEXT["kind"]}).parameters().total == 28_589_128  # ConvNeXt-T's


def test_the_convolutional_encoder_is_convnext() -> None:
    """Logits of `transformers`' with the same weights."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(0)
    model = build_model(cfg := section("model", CONVNEXT))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = ConvNextForImageClassification(
        ConvNextConfig(
            num_stages=3, hidden_sizes=cfg.widths, depths=cfg.depths, num_labels=5, layer_norm_eps=1e-6
        )
    ).eval()
    own = model.state_dict()
    names = {
        "embed.conv": "convnext.embeddings.patch_embeddings",
        "embed.norm": "convnext.embeddings.layernorm",
        "head.norm": "convnext.layernorm",
        "head.project": "classifier",
    }
    inside = {"conv": "dwconv", "norm": "layernorm", "w1": "pwconv1", "w2": "pwconv2"}
    state = {}
    for block, (stage, layer) in enumerate([(0, 0), (1, 0), (1, 1), (2, 0)]):
        at = f"convnext.encoder.stages.{stage}"
        names |= {
            f"layers.{block}.{ours}": f"{at}.layers.{layer}.{theirs}" for ours, theirs in inside.items()
        }
        state[f"{at}.layers.{layer}.layer_scale_parameter"] = own[f"layers.{block}.scale"]
        if cfg.shrinks(block):
            names[f"layers.{block}.shrink_norm"] = f"{at}.downsampling_layer.0"
            names[f"layers.{block}.shrink"] = f"{at}.downsampling_layer.1"
    state |= {
        f"{theirs}.{k}": own[f"{ours}.{k}"] for ours, theirs in names.items() for k in ("weight", "bias")
    }
    theirs.load_state_dict(state)
    model, theirs, x = model.double(), theirs.double(), torch.randn(2, 1, 16, 16, 3).double()
    assert torch.allclose(model(x), theirs(x[:, 0].permute(0, 3, 1, 2)).logits.float(), rtol=1e-5)
