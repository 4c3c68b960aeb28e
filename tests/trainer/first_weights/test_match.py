"""Which parameters are taken from a source, and which are drawn."""

from typing import Any

import pytest
import torch

from common.model_plan import ModelPlan
from trainer.first_weights.match import Match, match
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.models.encoder.config import EncoderConfig
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.towers.text_pair_config import TextPairConfig

SIZES: dict[str, Any] = {"layers": 2, "hidden": 48, "heads": 4, "vocab": 50}


def shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_model(cfg).named_parameters()}


class Source:
    """The shapes of a source."""

    def __init__(self, parameters: dict[str, tuple[int, ...]], besides: tuple[str, ...] = ()) -> None:
        self.where = "folder"
        self.parameters = parameters
        self.besides = besides


def matched(cfg: ModelConfig, source: Any, **kwargs: Any) -> Match:
    plan: ModelPlan = cfg.plan()
    return match(shapes(cfg), source, plan, **kwargs)


def test_a_head_of_another_task_is_drawn_and_the_old_one_dropped() -> None:
    source = Source(shapes(EncoderConfig(**SIZES)), ("their.extra",))
    found = matched(TextClassesConfig(**SIZES, classes=3), source)
    assert found.drawn == ("head.project.bias", "head.project.weight")
    assert found.dropped[-1] == "their.extra"
    assert {name for name in found.dropped if name.startswith("head.")} == {
        "head.bias", "head.transform.dense.weight", "head.transform.norm.weight",
    }  # fmt: skip
    assert "drawn: head.project.bias, head.project.weight; not taken: head.bias" in found.in_words()


def test_a_head_of_another_size_is_drawn_whole() -> None:
    source = Source(shapes(TextClassesConfig(**SIZES, classes=1000)))
    assert matched(TextClassesConfig(**SIZES, classes=1000), source).drawn == ()
    found = matched(TextClassesConfig(**SIZES, classes=3), source)
    assert found.drawn == ("head.project.bias", "head.project.weight") == found.dropped
    # The bias alone fits: the whole head is drawn.
    same_bias = source.parameters | {"head.project.weight": (3, 47), "head.project.bias": (3,)}
    assert matched(TextClassesConfig(**SIZES, classes=3), Source(same_bias)).drawn == found.drawn


def test_a_larger_vocabulary_is_enlarged() -> None:
    source = Source(shapes(DecoderConfig(**SIZES)))
    found = matched(DecoderConfig(**SIZES | {"vocab": 60}), source)
    assert found.enlarged == {"embed.weight": 50, "head.weight": 50}
    assert found.drawn == found.dropped == ()
    assert "new rows drawn: embed.weight behind row 50" in found.in_words()
    tied = Source(shapes(DecoderConfig(**SIZES, tie_embeddings=True)))
    assert matched(DecoderConfig(**SIZES | {"vocab": 60}, tie_embeddings=True), tied).enlarged == {
        "embed.weight": 50
    }


def test_a_backbone_must_be_there_whole() -> None:
    own = shapes(DecoderConfig(**SIZES))
    lacking = {name: shape for name, shape in own.items() if name != "layers.1.mlp.w1.weight"}
    with pytest.raises(RuntimeError, match=r"^folder: holds no parameter layers\.1\.mlp\.w1\.weight, which"):
        matched(DecoderConfig(**SIZES), Source(lacking))
    wrong = own | {"layers.0.attention.wq.weight": (48, 40)}
    with pytest.raises(RuntimeError, match=r"layers\.0\.attention\.wq\.weight is \[48, 40\] .* \[48, 48\]"):
        matched(DecoderConfig(**SIZES), Source(wrong))


def test_a_layer_of_no_other_task_must_be_there() -> None:
    """An encoder of pairs begins from one of masked tokens; but a decoder without its head is damaged."""
    encoder = Source(shapes(EncoderConfig(**SIZES)))
    pairs = TextPairConfig(**SIZES, embedding=8)
    assert matched(pairs, encoder, another_task=True).drawn == ("head.project.weight",)
    own = shapes(DecoderConfig(**SIZES))
    headless = Source({name: shape for name, shape in own.items() if name != "head.weight"})
    with pytest.raises(RuntimeError, match=r"^folder: holds no parameter head\.weight, which this model has"):
        matched(DecoderConfig(**SIZES), headless)


def test_what_fine_tuning_adds_is_drawn() -> None:
    own = shapes(DecoderConfig(**SIZES))
    added = "layers.0.attention.wq.lora.a.weight"
    found = match(own | {added: (8, 48)}, Source(own), DecoderConfig(**SIZES).plan())  # type: ignore[arg-type]
    assert found.drawn == (added,)
    assert found.taken == own.keys()
