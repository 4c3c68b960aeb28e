"""Pictures and closing lines of runs."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import cli
from trainer.metrics.closing import close_run, duration
from trainer.metrics.curves import read_curves
from trainer.metrics.plot import COLORS, MOST_POINTS, _dress, _thinned, draw, smooth


def record(
    path: Path,
    steps: int,
    *,
    evaluations: bool = True,
    lowest: int = 0,
    sources: bool = False,
    log_every: int = 1,
    unit: str = "tokens",
) -> Path:
    """Metrics of made-up steps; the held-out bits per byte are lowest at step `lowest`, or at the end. Of
    images, sets have a loss and an accuracy in their place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "config.yaml").touch()
    (path.parent / "events.jsonl").touch()
    with path.open("w") as file:
        for step in range(log_every, steps + 1, log_every):
            loss = None if step == 3 else 2 + 6 * math.exp(-step / 20)
            values: dict[str, Any] = {
                "step": step,
                "tokens": 1000 * step,
                "loss": loss,
                "grad_norm": 1 / step,
            }
            values |= {"lr": 0.001, "step_seconds": 0.5, "mfu": 0.25, f"{unit}_per_second": 2000.0}
            if sources:
                values["sources"] = {name: {"loss": loss, "share": 0.5} for name in ("web", "code")}
            file.write(json.dumps(values) + "\n")
            if evaluations and step % 10 == 0:
                figure = 1 + abs(step - (lowest or steps)) / steps
                result = {"loss": loss, "bits_per_byte": figure}
                if unit != "tokens":
                    result = {"loss": figure, "top_1": 0.5}
                file.write(json.dumps({"step": step, "eval": {"a": result, "b": result}}) + "\n")
    return path


def pixels(picture: Path) -> np.ndarray:
    from matplotlib.image import imread

    return (np.asarray(imread(picture))[:, :, :3] * 255).round().astype(int)


def has_color(image: np.ndarray, color: str) -> bool:
    """Whether a line of this color is drawn."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - wanted).sum(axis=2) < 12).sum()) > 100


@pytest.mark.parametrize(("steps", "evaluations"), [(100, True), (1, False)])
def test_a_picture_of_any_run(tmp_path: Path, steps: int, evaluations: bool) -> None:
    metrics = record(tmp_path / "metrics.jsonl", steps, evaluations=evaluations)
    draw([read_curves(metrics, "run")], tmp_path / "loss.png", title="run")
    data = (tmp_path / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG") and struct.unpack(">II", data[16:24]) == (1650, 1050)
    assert has_color(pixels(tmp_path / "loss.png"), COLORS[0]) == (steps > 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "events.jsonl",
        "loss.png",
        "metrics.jsonl",
    ]


def test_several_runs_lie_over_one_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(record(tmp_path / name / "metrics.jsonl", 50).parent) for name in ("one", "two", "three")]
    assert cli.main(["plot", *folders, "--out", str(tmp_path / "all.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'all.png'}\n"
    image = pixels(tmp_path / "all.png")
    assert [has_color(image, color) for color in COLORS[:4]] == [True, True, True, False]
    assert cli.main(["plot", folders[0]]) == 0
    assert (tmp_path / "one" / "loss.png").is_file()


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = record(tmp_path / "run" / "metrics.jsonl", 5)
    empty = record(tmp_path / "empty" / "metrics.jsonl", 0)
    assert cli.main(["plot", str(empty.parent)]) == 1
    assert "no step with a loss to draw" in capsys.readouterr().err
    run.write_text(run.read_text() + "{]\n")
    assert cli.main(["plot", str(run.parent)]) == 1
    assert "metrics.jsonl, line 6: not a JSON object" in capsys.readouterr().err
    assert cli.main(["plot", str(run.parent), "--out", str(tmp_path / "nowhere" / "x.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_sources_have_curves_of_their_own(tmp_path: Path) -> None:
    curves = read_curves(record(tmp_path / "metrics.jsonl", 30, sources=True, evaluations=False), "run")
    assert list(curves.sources) == ["web", "code"] and len(curves.sources["web"]) == 29
    draw([curves], tmp_path / "loss.png", title="run")
    assert has_color(pixels(tmp_path / "loss.png"), COLORS[2])


def test_the_closing_lines_name_the_best_evaluation_and_the_files(tmp_path: Path) -> None:
    record(tmp_path / "metrics.jsonl", 100, lowest=70)
    done, *heldout, places = close_run(tmp_path, "mine")
    loss = 2 + 6 * math.exp(-5)
    assert done == (
        f"mine is done: step 100, 100,000 tokens, loss {loss:.4f}, 2,000 tokens/s over 50 s of steps, "
        "mfu 25.0%"
    )
    assert heldout == [f"held-out {n}: 1.3000 bits per byte at the end, best 1.0000 at step 70" for n in "ab"]
    assert str(tmp_path / "loss.png") in places and (tmp_path / "loss.png").is_file()
    record(tmp_path / "metrics.jsonl", 100, log_every=20)
    done, *heldout, _ = close_run(tmp_path, "mine")
    assert "2,000 tokens/s over 50 s of steps" in done, "a line of every 20th step stands for 20"
    assert heldout[0].endswith("1.0000 bits per byte at the end, its best")


def test_a_run_on_pictures_closes_in_images_and_its_own_figures(tmp_path: Path) -> None:
    """A picture counts as one target: speed in targets would be that of tokens, of which there are none."""
    record(tmp_path / "metrics.jsonl", 100, lowest=70, unit="images")
    done, first, *_ = close_run(tmp_path, "mine")
    assert ", 100,000 images, " in done and "2,000 images/s over 50 s of steps" in done
    assert first == "held-out a: loss 1.3000 at the end, best 1.0000 at step 70, top_1 0.5000"
    assert has_color(pixels(tmp_path / "loss.png"), COLORS[2]), "the held-out losses of b, over those of a"


def test_an_evaluation_that_is_not_finite_is_not_passed_over(tmp_path: Path) -> None:
    path = record(tmp_path / "metrics.jsonl", 20)
    nothing = {"loss": None, "bits_per_byte": None}
    with path.open("a") as file:
        for step, names in ((20, "abc"), (30, "ac")):
            file.write(json.dumps({"step": step, "eval": dict.fromkeys(names, nothing)}) + "\n")
    *_, a, b, c, _ = close_run(tmp_path, "mine")
    assert a == "held-out a: nan bits per byte at the end, best 1.0000 at step 20"
    assert b == "held-out b: nan bits per byte at the end, best 1.0000 at step 20"
    assert c == "held-out c: nan bits per byte at the end"


def test_a_long_run_is_thinned_and_keeps_its_last_point() -> None:
    tokens, values = _thinned([(float(i), float(i)) for i in range(1_000_000)])
    assert len(tokens) <= MOST_POINTS + 1 and tokens[-1] == values[-1] == 999_999


def test_smoothing_keeps_the_mean_of_a_line_and_the_length() -> None:
    points = [(10.0 * i, float(i)) for i in range(100)]
    assert smooth(points)[10:90] == pytest.approx([value for _, value in points[10:90]])
    assert len(smooth(points)) == 100
    assert smooth([(1.0, 3.0)]) == [3.0]


def test_smoothing_is_over_tokens_where_lines_become_rare() -> None:
    noise = [(float(i), 3.0 + (-1) ** i) for i in range(1000)]
    rare = [(1000.0 * i, 2.0 + 0.001 * i) for i in range(1, 20)]
    smoothed = smooth(noise + rare)
    assert smoothed[400:600] == pytest.approx([3.0] * 200, abs=0.01), "over hundreds of lines"
    assert smoothed[1003:1018] == pytest.approx([value for _, value in rare[3:18]]), (
        "a neighbour on each side"
    )


def test_the_legend_keeps_off_a_rate_that_stays() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in ("first run", "second run"):
        axes.plot(range(100), [1.0] * 100, label=name)
    axes.set_ylim(0, 1.05)
    _dress(axes, "learning rate")
    figure.canvas.draw()
    legend = axes.get_legend().get_window_extent()
    assert legend.count_contains(axes.transData.transform([(x, 1.0) for x in range(100)])) == 0


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(s) for s in (42.4, 185, 8040)] == ["42 s", "3 min 5 s", "2 h 14 min"]
