"""The vision transformer: positions, pooling, views, parts, and what its config knows and refuses."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.config import DataConfig, Source
from trainer.config import checks, schema
from trainer.config.run_config import RunConfig
from trainer.models.vision.config import VisionConfig
from trainer.models.vision.embedding import sines_2d
from trainer.models.vision.vision import Vision
from trainer.objectives.contrastive_config import ContrastiveConfig
from vision_models import CLASS, SIZES, drawn, fed, images

ROOT = Path(__file__).resolve().parents[4]


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


def test_operations_of_a_run_are_those_of_all_views() -> None:
    cfg = VisionConfig(**SIZES, head="embedding")
    data = DataConfig([Source("x")], packing="one", image_size=24, image_views=2)
    run = RunConfig("run", cfg, data, objective=ContrastiveConfig())
    checks.check(run)
    assert run.flops_per_row == 2 * cfg.training_flops(1).total


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
    """docs/models.md has the keys of published models, and their numbers of parameters. ViT-B/16 needs 17.6
    billion multiply-adds a picture, as timm counts them.
    """
    text = (ROOT / "docs/models.md").read_text()
    found = re.findall(r"^# .*: ([\d,]+) parameters\n(\{kind: vision.+)$", text, re.M)
    assert len(found) == 2
    for count, keys in found:
        model = schema.build(VisionConfig, yaml.safe_load(keys))
        model.check()
        assert model.parameters().total == int(count.replace(",", "")), keys
    base = schema.build(VisionConfig, yaml.safe_load(found[0][1]))
    assert base.training_flops(1).total / 6 == pytest.approx(17.58e9, rel=0.01)
