"""An encoder of classes: its logits are a linear layer on what it pools, and padding is not seen."""

from typing import Any

import pytest
import torch
from torch import nn

from data.config import DataConfig
from trainer.models.encoder.text_classes import TextClasses
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.objectives.build import build_objective
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.picture_config import ClassificationConfig

SIZES: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4, "vocab": 50, "classes": 3}
POST = {"norm_place": "post", "biases": True, "positions": "learned", "max_positions": 12}


def drawn(**keys: Any) -> TextClasses:
    torch.manual_seed(0)
    model = TextClasses(TextClassesConfig(**(SIZES | keys)))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def batch(*lengths: int, behind: int = 0) -> dict[str, torch.Tensor]:
    tokens = torch.randint(50, (len(lengths), 12), generator=torch.Generator().manual_seed(1))
    length = torch.tensor(lengths)
    padding = torch.arange(12) >= length[:, None]
    return {
        "tokens": torch.where(padding, behind, tokens),
        "positions": torch.arange(12).expand(len(lengths), -1),
        "documents": padding.long(),
        "length": length,
        "label": torch.zeros(len(lengths), dtype=torch.int64),
    }


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
@pytest.mark.parametrize("keys", [{}, POST])
def test_logits_are_a_layer_on_what_is_pooled(pool: str, keys: dict[str, Any]) -> None:
    model = drawn(pool=pool, **keys)
    objective = build_objective(ClassificationConfig(), ObjectiveContext(0, 12, 50, 0, bytes, model.cfg))
    inputs = objective.inputs(batch(12, 5), (0, 1))
    logits = model(inputs.x, **inputs.kwargs)
    layer = model.head.project  # type: ignore[union-attr]
    model.head = None
    hidden = model(inputs.x, **inputs.kwargs)
    pooled = {
        "mean": torch.stack((hidden[0].mean(dim=0), hidden[1, :5].mean(dim=0))),
        "first": hidden[:, 0],
        "last": torch.stack((hidden[0, 11], hidden[1, 4])),
    }[pool]
    assert torch.allclose(logits, layer(pooled), rtol=1e-5, atol=1e-6)
    other = objective.inputs(batch(12, 5, behind=7), (0, 1))
    assert torch.allclose(model(other.x, **other.kwargs)[1, :5], hidden[1, :5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "keys",
    [{}, POST, {"norm": "rms", "biases": True}, {"head_layer": "tanh"}, {**POST, "head_layer": "gelu"}],
)
def test_the_config_knows_the_model(keys: dict[str, Any]) -> None:
    model = drawn(**keys)
    assert sum(p.numel() for p in model.parameters()) == model.cfg.parameters().total


def test_what_does_not_go_is_one_line() -> None:
    cfg = TextClassesConfig(**SIZES)
    with pytest.raises(
        ValueError, match=r"^parallel.cp=2: model.kind=text_classes needs all tokens of a text together"
    ):
        cfg.check_layout(tp=1, cp=2)
    with pytest.raises(
        ValueError, match=r"^data.packing=cut: objective.kind=classification takes a row for one"
    ):
        ClassificationConfig().check(cfg, DataConfig())
