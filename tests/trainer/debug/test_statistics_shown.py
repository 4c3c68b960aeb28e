"""The statistics as a table that fits the terminal, and as a picture."""

import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from trainer.debug import layer_table, picture
from trainer.debug.layer_table import Row
from trainer.debug.moments import Moments
from trainer.debug.observer import OUTPUT, WEIGHT

INSIDE = (
    *("attention.wk", "attention.wo", "attention.wq", "attention.wv", "attention_norm"),
    *("mlp.w1", "mlp.w2", "mlp.w3", "mlp_norm"),
)
VALUES = Moments(1000, -0.1234, 0.5, 1.02, 10)


def row(kind: str, name: str, layer: str, place: tuple[int, int, int]) -> Row:
    return Row(kind, name, layer, place, VALUES, VALUES)


@pytest.fixture
def rows() -> list[Row]:
    found = []
    places = {"embed": (0, 0, 0), "layers.0": (0, 1, 0), "layers.1": (0, 1, 1), "norm": (0, 2, 0)}
    for layer, place in places.items():
        found.append(row(OUTPUT, layer, layer, place))
        inside = [f".{name}" for name in INSIDE] if place[1] == 1 else [""]
        found += [row(WEIGHT, f"{layer}{name}.weight", layer, place) for name in inside]
    return [*found, row(WEIGHT, "head.weight", "head", (0, 2, 1))]


@pytest.mark.parametrize(("width", "tables"), [(160, 1), (100, 1), (80, 2), (50, 2), (40, 2), (20, 2)])
def test_the_table_fits_the_terminal_and_shortens_nothing(
    rows: list[Row],
    width: int,
    tables: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    layer_table.show(rows)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in out and out.count("layer ") == tables
    assert [name in out for name in ("layers.0", "norm", "head", "output", "weights", "std")] == [True] * 6
    assert out.count(" 0.0224") == 9, "standard deviations, in full"
    if width > 20:  # a terminal folds what not even the fewest columns fit
        assert max(len(line) for line in out.splitlines()) <= width
    if width >= 80:
        assert "zeros" in out and "-0.00012" in out and "1.02" in out and "1.0%" in out


def test_every_value_of_the_picture_is_seen_and_only_blocks_are_joined(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    picture.draw(rows, tmp_path / "p.png", title="t")
    for panel in drawn[0].axes:
        assert panel.lines and all(line.get_marker() == "o" for line in panel.lines)
    weights = drawn[0].axes[1].lines
    parts = [line for line in weights if line.get_color() == picture.INK]
    assert len(parts) == 2, "standard deviation and largest magnitude of embed, norm and head"
    assert [line.get_linestyle() for line in parts] == ["None", "None"]
    named = [line for line in weights if line.get_label() in INSIDE]
    assert len({line.get_color() for line in named}) == len(INSIDE)
