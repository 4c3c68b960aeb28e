"""A model of another kind needs a config and a line in the registry: nothing else names a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from torch import nn

from common.model_plan import Init, ModelPlan, Tower
from data.config import DataConfig, Source
from trainer.config import checks, keys, reading
from trainer.config.run_config import RunConfig
from trainer.models.build import build_model
from trainer.models.config import Parts
from trainer.models.registry import MODELS
from trainer.process.allocation import allocating


@dataclass
class StackConfig:
    """Linear layers on images."""

    model_class: ClassVar[str] = "test_registry:Stack"
    offers: ClassVar[frozenset[str]] = frozenset({"next token"})

    kind: Annotated[Literal["stack"], "which model this is"] = "stack"
    depth: Annotated[int, "blocks", "≥ 1"] = 3
    width: Annotated[int, "pixels", "≥ 1"] = 6
    vocab: ClassVar[int] = 0

    def check(self) -> None:
        if self.width % 2:
            raise ValueError(f"model.width={self.width}: is not even")

    def check_seq_len(self, seq_len: int) -> None: ...

    def check_layout(self, *, tp: int, cp: int) -> None:
        if tp * cp > 1:
            raise ValueError(f"parallel.tp={tp}, parallel.cp={cp}: a stack cannot be split")

    def positions_of_row(self, seq_len: int) -> int:
        return self.width

    def row_unit(self, seq_len: int) -> tuple[str, int]:
        return "images", 1

    def plan(self) -> ModelPlan:
        return ModelPlan(
            (Tower("blocks", (), ()),),
            (),
            (),
            lambda shape: shape,
            lambda *_: Init("zeros"),
            lambda *_: False,
        )

    def block_counts(self) -> dict[str, int]:
        return {"model.depth": self.depth}

    def parameters(self) -> Parts:
        return Parts(0, self.width**2, self.depth, 0)

    def sizes_to_lower(self) -> tuple[str, ...]:
        return (f"model.width={self.width}",)

    def training_flops(self, seq_len: int) -> Parts:
        return Parts(0, 6 * self.width**2, self.depth, 0)

    def hidden_elements(self, seq_len: int) -> int:
        return self.width

    def attention_elements(self, seq_len: int) -> int:
        return 0


class Stack(nn.Module):
    def __init__(self, cfg: StackConfig) -> None:
        super().__init__()
        layers = (nn.Linear(cfg.width, cfg.width, bias=False) for _ in range(cfg.depth))
        self.blocks = nn.ModuleDict({str(number): layer for number, layer in enumerate(layers)})


@pytest.fixture(autouse=True)
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(MODELS, "stack", StackConfig)
    keys.keys.cache_clear()
    yield
    keys.keys.cache_clear()


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    file = tmp_path / "run.yaml"
    file.write_text("model: {kind: stack, depth: 4}\ndata: {sources: [{path: x}]}\n")
    return reading.load(file, overrides)


def test_a_config_of_that_kind_is_read_checked_and_built(tmp_path: Path) -> None:
    cfg = config(tmp_path, "model.width=8")
    assert cfg.model == StackConfig(depth=4, width=8)
    assert sum(p.numel() for p in build_model(cfg.model).parameters()) == cfg.model.parameters().total
    assert "model.width" in {key.name for key in keys.keys(RunConfig)}
    for override, words in (
        ("model.width=7", "model.width=7: is not even"),
        ("model.heads=2", "model.kind=stack has no such key"),
    ):
        with pytest.raises(ValueError, match=words):
            config(tmp_path, override)


def test_its_layout_is_checked_by_its_own_keys(tmp_path: Path) -> None:
    assert checks.layout(config(tmp_path, "parallel.pp=2"), 2).stages == 2
    with pytest.raises(ValueError, match=r"^model.depth=4 cannot fill 8 pipeline stages: lower parallel.pp$"):
        checks.layout(config(tmp_path, "parallel.pp=8"), 8)
    with pytest.raises(ValueError, match="a stack cannot be split"):
        checks.layout(config(tmp_path, "parallel.tp=2"), 2)


def test_too_large_a_model_names_its_own_key() -> None:
    cfg = RunConfig("run", StackConfig(width=1 << 32), DataConfig([Source("x")]))
    with pytest.raises(ValueError, match=r"^model.width=4294967296: a model of 5.53e\+19 parameters"):
        checks.check(cfg)
    with pytest.raises(RuntimeError, match=r"^model.width=6: out of memory"), allocating(StackConfig()):
        raise MemoryError
