"""Which checkpoint of a run is loaded, and with which tokenizer."""

import os
import shutil
from pathlib import Path

import pytest

from trained_runs import flip_a_byte, make_trained_run
from trainer.checkpoint import folder as checkpoints
from trainer.generate.text import continue_text
from trainer.models.config import ModelConfig
from trainer.models.decoder.decoder import Decoder
from trainer.trained import trained_model


def test_a_checkpoint_that_is_removed_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention of a run that goes on training takes the newest one of a moment ago."""
    run = tmp_path / "run"
    make_trained_run(run, steps=(2,))
    make_trained_run(tmp_path / "later", steps=(3,))
    load, calls = trained_model.load_model, []

    def late(cfg: ModelConfig, folder: Path, device: str) -> Decoder:
        calls.append(folder.name)
        if len(calls) == 1:
            newer = checkpoints.step_folder(tmp_path / "later" / "checkpoints", 3)
            os.rename(newer, checkpoints.step_folder(run / "checkpoints", 3))
            shutil.rmtree(folder)
        return load(cfg, folder, device)

    monkeypatch.setattr(trained_model, "load_model", late)
    assert "".join(continue_text(run, "ab", max_tokens=3)) is not None
    assert calls == ["step-000000002", "step-000000003"]
    flip_a_byte(next((run / "checkpoints").glob("step-*/*.safetensors")))
    with pytest.raises(RuntimeError, match="none of its 1 verifies"):
        continue_text(run, "ab", max_tokens=3)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    make_trained_run(tmp_path / "run")
    path = tmp_path / "run" / "tokenizer.json"
    path.write_text(path.read_text().replace('"a"', '"b"', 1))
    with pytest.raises(RuntimeError, match="is not the tokenizer that the run was trained with: sha256"):
        continue_text(tmp_path / "run", "ab", max_tokens=3)
    path.unlink()
    with pytest.raises(RuntimeError, match=r"tokenizer\.json is missing: restore it from the corpus"):
        continue_text(tmp_path / "run", "ab", max_tokens=3)


def test_a_checkpoint_that_does_not_name_its_tokenizer(tmp_path: Path) -> None:
    make_trained_run(tmp_path / "run", steps=(2,), identity={})
    with pytest.raises(
        RuntimeError, match=r"step-000000002 does not say which tokenizer .*train the run further"
    ):
        continue_text(tmp_path / "run", "ab", max_tokens=3)
