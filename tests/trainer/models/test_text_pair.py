"""A model of pairs of texts: an encoder of each text alone, and its facts."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.config import DataConfig, Source
from trainer.config import checks
from trainer.config.run_config import RunConfig
from trainer.models.build import build_model
from trainer.models.encoder.config import EncoderConfig
from trainer.models.encoder.encoder import Encoder
from trainer.models.towers.text_pair import TextPair
from trainer.models.towers.text_pair_config import TextPairConfig
from trainer.objectives.contrastive_config import ClipConfig, ContrastiveConfig
from trainer.objectives.pairs import text_pair_inputs

SIZES: dict[str, Any] = {"layers": 4, "hidden": 32, "heads": 4, "ffn_hidden": 48, "vocab": 50}
BERT: dict[str, Any] = {
    **SIZES,
    "norm_place": "post",
    "activation": "gelu",
    "biases": True,
    "positions": "learned",
    "max_positions": 12,
    "token_types": 2,
    "window": 0,
}
MODERN: dict[str, Any] = {**SIZES, "window": 3}
HALF = 12


def pair(lengths: list[list[int]]) -> dict[str, Tensor]:
    """Rows of two texts as `data.packing=views` makes them."""
    length = torch.tensor(lengths)
    rows = len(lengths)
    place = torch.arange(HALF).expand(rows, 2, HALF)
    padding = place >= length[..., None]
    tokens = torch.randint(1, 50, (rows, 2, HALF), generator=torch.Generator().manual_seed(2))
    documents = padding + 2 * torch.arange(2)[None, :, None]
    positions = torch.where(padding, place - length[..., None], place)
    given = {"tokens": tokens.masked_fill(padding, 0), "documents": documents, "positions": positions}
    return {name: tensor.flatten(1) for name, tensor in given.items()} | {"length": length}


def drawn(cfg: TextPairConfig) -> TextPair:
    torch.manual_seed(0)
    model = build_model(cfg)
    assert isinstance(model, TextPair)
    return model.eval()


@pytest.mark.parametrize("keys", [BERT, MODERN], ids=["bert", "modern"])
@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_each_half_is_embedded_as_the_text_alone(keys: dict[str, Any], pool: Any) -> None:
    model = drawn(TextPairConfig(**keys, pool=pool, embedding=10))
    alone = Encoder(EncoderConfig(**keys, tie_embeddings=False)).eval()
    alone.head = None
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    lengths = [[12, 5], [1, 9]]
    given = pair(lengths)
    inputs = text_pair_inputs(given, pool)
    found = model(inputs.x, **inputs.kwargs).unflatten(1, (2, 10))
    for row, of_row in enumerate(lengths):
        for side, length in enumerate(of_row):
            text = given["tokens"][row, side * HALF : side * HALF + length]
            hidden = alone(text[None])[0]
            pooled = hidden.mean(dim=0) if pool == "mean" else hidden[0 if pool == "first" else -1]
            wanted = model.head.project(pooled)  # type: ignore[union-attr]
            assert torch.allclose(found[row, side], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keys", [BERT, MODERN], ids=["bert", "modern"])
@pytest.mark.parametrize("learnt", ["none", "scale", "scale_bias"])
def test_its_facts_are_the_models(keys: dict[str, Any], learnt: Any) -> None:
    cfg = TextPairConfig(**keys, embedding=10, learnt=learnt)
    model = drawn(cfg)
    assert cfg.parameters().total == sum(p.numel() for p in model.parameters())
    named = {name for name, _ in model.named_parameters()}
    plan = cfg.plan()
    assert all(plan.block_of(name) or name.startswith((*plan.first, *plan.last)) for name in named)
    inputs = text_pair_inputs(pair([[12, 12]]), "mean")
    columns = {"none": 0, "scale": 1, "scale_bias": 2}[learnt]
    assert model(inputs.x, **inputs.kwargs).shape == (1, 20 + columns)
    if learnt != "none":
        first = [plan.init(f"head.{name}", (1,)).value for name in ("log_scale", "score_bias")]
        assert first == pytest.approx([{"scale": 2.6593, "scale_bias": 2.3026}[learnt], -10.0], abs=1e-4)
        other = TextPairConfig(**keys, embedding=10, learnt=learnt, first_scale=4.0, first_bias=-3.5).plan()
        first = [other.init(f"head.{name}", (1,)).value for name in ("log_scale", "score_bias")]
        assert first == pytest.approx([math.log(4), -3.5])


def test_what_does_not_go_together_is_refused_by_name() -> None:
    cfg = RunConfig(
        "run",
        TextPairConfig(**BERT),  # type: ignore[arg-type]
        DataConfig([Source("x")], packing="views", seq_len=24),
        objective=ContrastiveConfig(),
    )
    checks.check(cfg)
    for change, words in (
        ({"objective": ClipConfig()}, r"objective.kind=clip: needs model.learnt=scale, .*model.learnt=none"),
        ({"data": replace(cfg.data, packing="one")}, r"data.packing=one: .* set data.packing to views"),
        ({"data": replace(cfg.data, seq_len=26)}, r"data.seq_len=26 makes texts of 13 tokens, more than"),
        ({"model": EncoderConfig(**SIZES)}, r"contrastive: needs a model that offers embedding, .*text_pair"),
    ):
        with pytest.raises(ValueError, match=words):
            checks.check(replace(cfg, **change))
