"""The card of a run that began from other weights names them and their hash, and how it was tuned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from trained_runs import make_trained_run, model_config
from trainer.export.export import export

OPTIONS: dict[str, Any] = {"step": None, "dtype": "fp32", "shard_bytes": 10**9}


def test_the_base_of_a_run_that_trains_every_weight_is_in_its_events(tmp_path: Path) -> None:
    make_trained_run(tmp_path / "first")
    model = replace(model_config(tied=True), init_from=str(tmp_path / "first"))
    make_trained_run(tmp_path / "tuned", model=model)
    config = tmp_path / "tuned" / "config.yaml"
    text = config.read_text()
    assert "method: none" in text
    config.write_text(text.replace("method: none", "method: full"))
    lines = ('{"kind": "init", "hash": "0123"}', '{"kind": "started"}', '{"kind": "init", "hash": "4567"}')
    (tmp_path / "tuned" / "events.jsonl").write_text("\n".join((*lines, '{"kind": "saved"}')) + "\n")
    export(tmp_path / "tuned", tmp_path / "out", **OPTIONS)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| base | `{tmp_path.name}/first` |\n| base, hash | `4567` |\n" in text
    assert "| `finetune.method` | full |\n" in text and f", from {tmp_path.name}/first on." in text
    assert str(tmp_path) not in text


def test_a_run_from_drawn_weights_says_nothing_of_it(tmp_path: Path) -> None:
    make_trained_run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", **OPTIONS)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "finetune" not in text and "| base" not in text and " on 64 targets.\n" in text
