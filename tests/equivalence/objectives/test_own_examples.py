"""docs/examples: models from outside the project. `test_objective_parity` trains them on their layouts."""

from typing import Any

import pytest
import torch
from torch import nn

from objective_cases import CONVNEXT, OWN_DECODER
from objective_runs import config_of
from trainer.models.build import build_model
from trainer.models.config import ModelConfig


def config(model: dict[str, Any]) -> ModelConfig:
    return config_of({"model": model}).model


def test_its_layout_is_refused_by_its_own_words() -> None:
    with pytest.raises(
        ValueError, match=r"^parallel.tp=2, parallel.cp=1: convolutions are not split over ranks"
    ):
        config(CONVNEXT).check_layout(tp=2, cp=1)
    with pytest.raises(ValueError, match=r"^model.image_size=20: not a multiple of 16"):
        config(CONVNEXT | {"image_size": 20}).check()


@pytest.mark.parametrize("model", [CONVNEXT, OWN_DECODER])
def test_their_sizes_are_as_their_configs_say(model: dict[str, Any]) -> None:
    cfg = config(model)
    assert sum(p.numel() for p in build_model(cfg).parameters()) == cfg.parameters().total
    assert config({"kind": CONVNEXT["kind"]}).parameters().total == 28_589_128  # ConvNeXt-T's


def test_the_convolutional_encoder_is_convnext() -> None:
    """Logits of `transformers`' with the same weights."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(0)
    model = build_model(cfg := config(CONVNEXT))
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
