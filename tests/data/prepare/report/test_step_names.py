"""The unit that people read beside a step's size is the unit that was counted in."""

from pathlib import Path

from data.prepare.report.step_names import unit_of
from prepared import made

# Of each step the documents that are counted, one of them with letters of several bytes.
TEXT = "fünf Wörter über schöne Bäume"
LINES = (
    f'{{"text": "{TEXT}"}}',
    '{"text": "ü"}',
    f'{{"text": "{TEXT}"}}',
    "kein JSON, für niemanden",
    '["ü"]',
    "[" * 600 + '"ü"',
)


def test_sizes_are_in_the_unit_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    broken = '{"text": "%s' % ("ü" * 9)
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(broken.encode() + b'\xff"}\n')
    report = made(tmp_path / "a.jsonl", "bytes", tmp_path / "out", min_characters=2, deduplicate="exact")
    counted = {step: (size, unit_of(step)) for step, (_, size) in report.counts.items()}
    with_end = 1  # of a line
    assert counted == {
        "read": (2 * len(TEXT) + 1 + 10, "characters"),
        "removed.too_short": (1, "characters"),
        "removed.duplicate": (len(TEXT), "characters"),
        "removed.not_json": (len(LINES[3].encode()) + with_end, "bytes"),
        "removed.not_a_json_object": (len(LINES[4].encode()) + with_end, "bytes"),
        "removed.nested_too_deeply": (len(LINES[5].encode()) + with_end, "bytes"),
        "changed.broken_utf8": (len(broken.encode()) + len(b'\xff"}'), "bytes"),
    }
    card = (tmp_path / "out/datacard.md").read_text(encoding="utf-8")
    assert f"| left out: not JSON | 1 | {len(LINES[3].encode()) + with_end} | bytes |" in card
    assert f"| left out: an exact copy | 1 | {len(TEXT)} | characters |" in card
