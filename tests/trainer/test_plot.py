"""The loss curve."""

import json
import math
import struct
from pathlib import Path

import pytest

from trainer.metrics.plot import loss_curve, smooth


def record(path: Path, steps: int, *, evaluations: bool = True) -> Path:
    with path.open("w") as file:
        for step in range(1, steps + 1):
            loss = None if step == 3 else 2 + 6 * math.exp(-step / 20)
            file.write(json.dumps({"step": step, "tokens": 1000 * step, "loss": loss}) + "\n")
            if evaluations and step % 10 == 0:
                result = {"loss": loss, "bits_per_byte": 1 + 1 / step}
                file.write(json.dumps({"step": step, "eval": {"a": result, "b": result}}) + "\n")
    return path


@pytest.mark.parametrize(("steps", "evaluations"), [(100, True), (100, False), (1, False), (12, True)])
def test_a_picture_of_any_run(tmp_path: Path, steps: int, evaluations: bool) -> None:
    picture = tmp_path / "loss.png"
    loss_curve(record(tmp_path / "metrics.jsonl", steps, evaluations=evaluations), picture, title="t")
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1350, 750)
    assert len(data) > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "eval": {}}\n')
    with pytest.raises(RuntimeError, match="no step with a loss to draw"):
        loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png", title="t")


def test_smoothing_keeps_the_mean_of_a_line_and_the_length() -> None:
    values = [float(i) for i in range(100)]
    assert smooth(values)[10:90] == values[10:90]
    assert len(smooth(values)) == 100
    assert smooth([3.0]) == [3.0]
