"""A run that has ended early is known by its events, to what watches it and to the next start of its job."""

import json
from pathlib import Path
from typing import Any

from launch.cluster.progress import progress
from trainer.record.events import ended_early


def write(file: Path, *lines: dict[str, Any]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_it_has_ended_at_the_step_of_the_event_and_at_no_other(tmp_path: Path) -> None:
    write(tmp_path / "config.yaml", {"train": {"steps": 60}})
    write(tmp_path / "events.jsonl", {"kind": "early_stop", "step": 20, "reason": "no better figure"})
    write(tmp_path / "metrics.jsonl", {"step": 20, "loss": 1.0})
    assert ended_early(tmp_path / "events.jsonl", 20) and progress(tmp_path, None).is_finished
    write(tmp_path / "metrics.jsonl", {"step": 16, "loss": 1.0})  # killed before it was saved
    assert not ended_early(tmp_path / "events.jsonl", 16) and not progress(tmp_path, None).is_finished
