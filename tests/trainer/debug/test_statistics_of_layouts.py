"""Law 1 of the statistics: names and numbers of any layout are those of one process."""

import csv
import math
import re
from pathlib import Path

import pytest
from debugged import looked_into, opened, statistics_of

from ranks import RankPools
from runs import Alone
from trainer.debug.layer_table import Row
from trainer.debug.moments import Moments

LIMIT = 1e-5


def differences(found: list[Row], expected: list[Row]) -> list[str]:
    """The statistics that are off by more than LIMIT."""
    assert [(row.kind, row.name, row.layer) for row in found] == [
        (row.kind, row.name, row.layer) for row in expected
    ]
    off = []
    for a, b in zip(found, expected, strict=True):
        assert (a.values.count, a.gradient.count) == (b.values.count, b.gradient.count), a.name
        pairs = {"values": (a.values, b.values), "gradient": (a.gradient, b.gradient)}
        off += [f"{a.name} {kind} {what}" for kind, pair in pairs.items() for what in wrong(*pair)]
        # Not of gradients: whether two terms cancel to exactly 0 is a matter of rounding.
        if abs(a.values.zeros - b.values.zeros) > LIMIT * a.values.count:
            off.append(f"{a.name} zeros")
    return off


def wrong(a: Moments, b: Moments) -> list[str]:
    size = b.norm / max(1, b.count) ** 0.5  # root mean square
    pairs = {"mean": (a.mean, b.mean), "std": (a.std, b.std), "norm": (a.norm / b.count**0.5, size)}
    pairs["max"] = (a.largest, b.largest)
    return (
        [what for what, (x, y) in pairs.items() if not abs(x - y) <= LIMIT * max(size, abs(y))]
        if b.count
        else []
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("parallel.tp=2", "parallel.pp=2"),
        pytest.param(
            ("parallel.dp_shard=2", "parallel.cp=2", "parallel.zero=3", "parallel.recompute=full"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_statistics_of_a_layout_are_those_of_one_process(
    trained: Path, ranks: RankPools, overrides: tuple[str, ...]
) -> None:
    expected = statistics_of(Alone(), trained, ())
    assert {row.layer for row in expected} == {"embed", *(f"layers.{n}" for n in range(4)), "norm", "head"}
    for found in ranks(4).run(statistics_of, trained, overrides):
        assert differences(found, expected) == []
    other = statistics_of(Alone(), trained, (), twice_the_norms)
    assert "layers.2.mlp_norm values std" in differences(other, expected)


def twice_the_norms(run) -> None:  # type: ignore[no-untyped-def]
    for chunk in run.engine.chunks():
        if chunk.name == "model.layers.2.mlp_norm.weight":
            chunk.tensor.mul_(2.0)


def test_the_gradients_in_the_table_are_those_of_the_mean_loss(trained: Path, tmp_path: Path) -> None:
    with opened(trained) as run:
        _, lines = looked_into(run, tmp_path)
    (norm,) = (match[1] for line in lines if (match := re.search(r"gradient norm ([\d.]+)", line)))
    with (tmp_path / "statistics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    squares = sum(float(row["gradient_norm"]) ** 2 for row in rows if row["kind"] == "weight")
    assert math.sqrt(squares) == pytest.approx(float(norm), rel=1e-3)
    names = [row["name"] for row in rows]
    assert (
        names.index("embed") < names.index("layers.0") < names.index("layers.3.mlp.w2") < names.index("norm")
    )
    assert (tmp_path / "statistics.png").read_bytes().startswith(b"\x89PNG")
