"""A plan that does not describe its module is refused in one line, as is a module that cannot be made."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from common.model_plan import Init, ModelPlan
from trainer.models.build import build_model
from trainer.models.declared import wrong_size
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder
from trainer.models.registry import MODELS

Change = Callable[[ModelPlan], Any]


@dataclass
class Own(DecoderConfig):
    """A decoder whose module or plan a test changes."""

    model_class: ClassVar[str] = "test_declared_plan:OwnModel"
    module: ClassVar[Callable[[nn.Module], None]] = staticmethod(lambda model: None)
    change: ClassVar[Change] = staticmethod(lambda plan: plan)

    def plan(self) -> ModelPlan:
        return self.change(super().plan())  # type: ignore[no-any-return]


class OwnModel(Decoder):
    def __init__(self, cfg: Own) -> None:
        super().__init__(cfg)
        cfg.module(self)


def tower(**changes: Any) -> Change:
    return lambda plan: replace(plan, towers=(replace(plan.towers[0], **changes),))


def fails(*_: Any) -> Any:
    raise KeyError("embed\nweight")


WRONG_PLANS: list[tuple[Change, str]] = [
    (lambda plan: None, r"plan\(\) returns a NoneType, not a ModelPlan$"),
    (lambda plan: replace(plan, towers=()), r"block_counts\(\) has 1 numbers, and plan\(\) 0 towers$"),
    (tower(blocks="text.blocks"), r"its blocks in 'text.blocks', and there is none: make it a ModuleDict$"),
    (tower(blocks="embed"), r"its blocks in 'embed', and that is a Embedding: make it a ModuleDict$"),
    (tower(first=("embeds",)), r"plan\(\) names a module 'embeds', and there is none$"),
    (tower(last=("norm",)), r"parameter 'head.weight' is in none of the towers of plan\(\)"),
    (lambda plan: replace(plan, init=fails), r"init\('embed.weight', .* fails: KeyError: 'embed.*: give an"),
    (lambda plan: replace(plan, init=lambda n, s: None), r"of plan\(\) returns None: give an Init with one"),
    (lambda plan: replace(plan, init=lambda n, s: Init("even")), r"kind='even'.*: give an Init"),  # type: ignore[arg-type]
    (lambda plan: replace(plan, init=lambda n, s: Init("normal", -1.0)), r"std=-1.0.*: give an Init"),
    (lambda plan: replace(plan, no_decay=fails), r"no_decay\('embed.weight', .* fails: KeyError: "),
    (lambda plan: replace(plan, tied=(("embed.weight", "norm.weight"),)), r"are one parameter, and they are"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_PLANS)
def test_a_wrong_plan_is_one_line(change: Change, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "change", staticmethod(change))
    with pytest.raises(ValueError, match=f"^model.kind='decoder': .*{message}") as refused:
        build_model(Own(layers=2))
    assert "\n" not in str(refused.value)


def blocks_in_a_list(model: Any) -> None:
    model.layers = nn.ModuleList(model.layers.values())


def blocks_by_name(model: Any) -> None:
    model.layers = nn.ModuleDict({f"block{key}": block for key, block in model.layers.items()})


def a_block_less(model: Any) -> None:
    del model.layers["1"]


def a_layer_more(model: Any) -> None:
    model.more = nn.Linear(2, 2)


WRONG_MODULES: list[tuple[Callable[[Any], Any], str]] = [
    (blocks_in_a_list, "its blocks in 'layers', and that is a ModuleList: make it a ModuleDict$"),
    (blocks_by_name, "the keys of 'layers' are block0, block1: call them 0, 1, 2, …$"),
    (a_block_less, r"'layers' has 1 blocks, and block_counts\(\) says 2$"),
    (a_layer_more, r"parameter 'more.weight' is in none of the towers of plan\(\)"),
    (fails, r"test_declared_plan:OwnModel cannot be made: KeyError: 'embed.*weight' \(.*, line \d+\)$"),
]


@pytest.mark.parametrize(("module", "message"), WRONG_MODULES)
def test_a_module_that_is_not_as_declared_is_one_line(
    module: Callable[[Any], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Own, "module", staticmethod(module))
    with pytest.raises(ValueError, match=f"^model.kind='decoder': .*{message}") as refused:
        build_model(Own(layers=2))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", MODELS)
def test_the_plans_of_this_project_describe_their_modules(kind: str) -> None:
    with torch.device("meta"):
        build_model(MODELS[kind]())


def test_another_number_of_parameters_than_stated_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's `parameters` decides what sizes and MFU are reckoned from."""
    own = Own(kind="test_declared_plan:Own", layers=2, hidden=8, heads=1, vocab=16)
    build_model(own)
    parts = own.parameters()
    monkeypatch.setattr(Own, "parameters", lambda self: replace(parts, block=parts.block + 1))
    with pytest.raises(ValueError, match=rf"parameters\(\) says {parts.total + 2:,} .*has {parts.total:,}$"):
        build_model(own)


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_this_project_have_as_many_parameters_as_they_state(kind: str) -> None:
    with torch.device("meta"):
        model = build_model(MODELS[kind]())
    assert wrong_size(MODELS[kind]().parameters(), model) == ""
