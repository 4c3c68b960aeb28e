"""The progress bar of `prepare` on a narrow terminal."""

import pytest
from rich.console import Console

from data.prepare.report import progress


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_phase_is_one_line_with_its_figures(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=width, force_terminal=True, record=True)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    bar = progress.Progress(shown=True)
    for name in ("training tokenizer", "tokenising"):
        bar.phase(name, 149_300_000_000)
    console.print(bar._bar.get_renderable())
    lines = console.export_text().splitlines()
    assert [line.split()[0] for line in lines] == ["training", "tokenising"]
    assert "149.3/149.3 GB" in lines[0] and "0.0/149.3 GB" in lines[1] and "left -:--:--" in lines[1], lines
