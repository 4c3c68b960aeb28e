"""What fine-tuning adds to a model: nothing at first, and merged the same results."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.model_plan import ModelPlan
from trainer.models.build import build_model
from trainer.models.decoder.config import DecoderConfig
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.tuned.config import FinetuneConfig
from trainer.models.tuned.low_rank import LoRALinear
from trainer.models.tuned.plan import is_added, tuned_plan
from trainer.models.tuned.tune import merge, tune

DECODER = DecoderConfig(
    layers=2, hidden=32, heads=4, kv_heads=2, vocab=40, attention_bias="all", mlp_bias=True
)


def logits(model: nn.Module) -> Tensor:
    tokens = torch.arange(24).view(2, 12) % 40
    with torch.no_grad():
        return model.double()(tokens)  # type: ignore[no-any-return]


def drawn(cfg: FinetuneConfig) -> tuple[nn.Module, nn.Module]:
    """The base, and the same with what is added."""
    torch.manual_seed(0)
    base = build_model(DECODER)
    tuned = copy.deepcopy(base)
    tune(tuned, DECODER.plan(), cfg)
    return base, tuned


@pytest.mark.parametrize("targets", [["wq", "wv"], ["attention.wo"], ["all"]])
def test_lora_begins_as_the_base_and_merged_it_computes_the_same(targets: list[str]) -> None:
    base, tuned = drawn(FinetuneConfig("lora", rank=3, alpha=7.0, targets=targets))
    torch.testing.assert_close(logits(tuned), logits(base), rtol=0, atol=0)
    for module in tuned.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora.b.weight, std=0.1)
    expected = logits(tuned)
    assert (expected - logits(base)).abs().max() > 1e-3
    merge(tuned)
    torch.testing.assert_close(logits(tuned), expected, rtol=1e-12, atol=1e-12)
    assert {name for name, _ in tuned.named_parameters()} == {name for name, _ in base.named_parameters()}


def test_a_branch_is_alpha_over_rank_times_b_a() -> None:
    layer = LoRALinear(nn.Linear(5, 4), rank=2, scale=FinetuneConfig(rank=2, alpha=6.0).scale)
    nn.init.normal_(layer.lora.b.weight)
    x = torch.randn(3, 5)
    branch = 6.0 / 2 * (x @ layer.lora.a.weight.T) @ layer.lora.b.weight.T
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias + branch)


@pytest.mark.parametrize("norm_place", ["pre", "post"])
def test_adapters_stand_behind_attention_and_feed_forward_layer(norm_place: Any) -> None:
    cfg = TextClassesConfig(layers=2, hidden=32, heads=4, vocab=40, norm_place=norm_place)
    model = build_model(cfg, None, FinetuneConfig("adapters", bottleneck=5))
    added = {name for name, _ in model.named_parameters() if is_added(name)}
    assert added == {
        f"layers.{layer}.{part}.adapter.{matrix}.{kind}"
        for layer in (0, 1)
        for part in ("attention", "mlp")
        for matrix in ("down", "up")
        for kind in ("weight", "bias")
    }
    called = []
    for name, module in model.named_modules():
        if name.endswith("adapter"):
            module.register_forward_hook(lambda m, args, out: called.append(tuple(out.shape)))
    x = torch.zeros(2, 8, dtype=torch.int64)
    places = torch.arange(8).expand(2, 8)
    model(x, positions=places, documents=torch.zeros_like(x), weights=torch.full((2, 1, 8), 1 / 8))
    assert called == [(2, 8, 32)] * 4


def test_every_module_that_is_added_has_a_style_and_first_values() -> None:
    for cfg in (FinetuneConfig("lora", targets=["all"]), FinetuneConfig("adapters")):
        plan = tuned_plan(DECODER.plan(), cfg)
        model = build_model(DECODER, None, cfg)
        for name, parameter in model.named_parameters():
            if is_added(name):
                layer = name.removesuffix(".weight").removesuffix(".bias")
                assert any(matches_one(plan, layer)), name
                zero = name.endswith((".b.weight", ".bias", ".up.weight"))
                assert (plan.init(name, tuple(parameter.shape)).kind == "zeros") == zero, name
                assert plan.trained(name)


def matches_one(plan: ModelPlan, name: str) -> list[bool]:
    from common.model_plan import matches

    return [matches(pattern, name) for pattern, _ in plan.tensor]


def test_a_uniform_a_is_within_one_over_the_root_of_its_inputs() -> None:
    from parallel.parameters.initialize import draw

    plan = tuned_plan(DECODER.plan(), FinetuneConfig("lora"))
    a = draw("layers.0.attention.wq.lora.a.weight", (64, 100), plan, 0, torch.device("cpu"))
    assert 0.099 < float(a.abs().max()) <= 0.1
    assert float(a.std()) == pytest.approx((3 * 100) ** -0.5, rel=0.05)


def test_a_probe_needs_a_layer_of_a_task() -> None:
    with pytest.raises(ValueError, match="this model has none"):
        tuned_plan(DECODER.plan(), FinetuneConfig("probe"))
    plan = tuned_plan(TextClassesConfig().plan(), FinetuneConfig("probe"))
    assert plan.trained("head.project.weight") and not plan.trained("norm.weight")
