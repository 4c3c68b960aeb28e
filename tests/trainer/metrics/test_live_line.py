"""The live line: a bar on a terminal, few plain lines elsewhere."""

import re
import sys

import pytest

from trainer.metrics.progress import Progress, summary


def test_without_a_terminal_lines_are_few_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1000)
    for step in range(1, 1001):
        progress.step(step, {"loss": 2.0, "grad_norm": 1.0, "lr": 0.001, "tokens_per_second": 1234.5})
    progress.print_line("step 1000: held-out")
    progress.close()
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("step 1/1000  loss 2.000 · norm 1 · lr 1.00e-03 · 1,234 tokens/s")
    assert shown[1].startswith("step 1000/1000")
    assert len(shown) == 3 and "\x1b" not in "".join(shown)


def test_a_rank_that_does_not_report_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(10, shown=False)
    progress.step(1, {"loss": 1.0})
    progress.print_line("x")
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(4, done=1)
    for step in (2, 3, 4):
        progress.step(step, {"loss": 3.25, "tokens_per_second": 10.0, "mfu": 0.5})
    progress.close()
    shown = capsys.readouterr().err
    assert "4/4" in shown and "loss 3.250" in shown


@pytest.mark.parametrize(
    ("columns", "there"), [(60, []), (80, []), (140, ["norm 0.52", "lr 3.00e-04", "━━━"])]
)
def test_a_narrow_terminal_shows_the_steps_and_the_time_to_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, there: list[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = Progress(100_000, done=9_999)
    metrics = {"loss": 3.25, "grad_norm": 0.52, "lr": 3.0e-4, "tokens_per_second": 1.2e6, "mfu": 0.412}
    progress.step(12_000, metrics)
    progress.close()
    plain = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", capsys.readouterr().err)
    shown = plain.replace("\r", "\n").strip().splitlines()[-1]
    assert len(shown) <= columns
    for what in ("12000/100000", "loss 3.250", *there):
        assert what in shown
    assert re.search(r"-:--:--|\d:\d\d:\d\d", shown), shown


def test_summary_takes_what_is_there() -> None:
    assert summary({"loss": None}) == ""
    assert summary({"loss": 1.0, "mfu": 0.412}) == "loss 1.000 · mfu 41.2%"
