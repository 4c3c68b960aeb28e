"""`model.init_from` gives the keys of `model:` that a config leaves out, and refuses what does not fit."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stock_models import write_folder
from trained_runs import VOCAB, make_trained_run, model_config
from trainer.config import first_keys, reading
from trainer.config.run_config import RunConfig, settings
from trainer.models.decoder.config import DecoderConfig
from trainer.models.encoder.config import EncoderConfig

MODEL = DecoderConfig(layers=2, hidden=48, heads=4, kv_heads=2, head_dim=12, ffn_hidden=128, vocab=50)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "folder", MODEL)
    make_trained_run(tmp_path / "earlier")
    return tmp_path


def load(place: Path, model: str) -> RunConfig:
    file = place / "new.yaml"
    file.write_text(f"model: {{{model}}}\ndata: {{sources: [{{path: corpus}}], seq_len: 32}}\n")
    return reading.load(file)


def test_keys_that_are_left_out_are_those_of_the_folder(place: Path) -> None:
    assert load(place, "init_from: folder").model == replace(MODEL, init_from="folder")
    grown = load(place, "init_from: folder, vocab: 60, window: 16, init_std: 0.1").model
    assert grown == replace(MODEL, init_from="folder", vocab=60, window=16, init_std=0.1)


@pytest.mark.parametrize(
    ("given", "step"), [("earlier", None), ("earlier@2", 2), ("earlier/config.yaml", None)]
)
def test_keys_that_are_left_out_are_those_of_the_run(place: Path, given: str, step: int | None) -> None:
    assert load(place, f"init_from: {given}").model == replace(model_config(True), init_from=given)
    found = first_keys.origin(given)
    assert (found.folder, found.is_run, found.step) == (Path("earlier"), True, step)


def test_a_run_needs_the_folder_no_more_once_its_config_is_written(place: Path) -> None:
    cfg = load(place, "init_from: earlier@2")
    run = place / "earlier"  # as a run's own folder holds it
    (run / "config.yaml").write_text(reading.dump(replace(cfg, run_dir="")))
    cfg.model.init_from = "gone"  # type: ignore[attr-defined]
    (run / "config.yaml").write_text(reading.dump(replace(cfg, run_dir="")))
    shutil.rmtree(place / "folder")
    assert reading.load(run).model == cfg.model


def test_where_the_weights_were_is_no_part_of_the_model(place: Path) -> None:
    """It is reported at a resume, and a run that is drawn has no such key."""
    assert settings(load(place, "init_from: folder"))["model.init_from"] == "folder"
    assert "model.init_from" not in settings(load(place, "layers: 2"))


@pytest.mark.parametrize(("model", "message"), [
    ("init_from: folder, hidden: 64", "model.hidden=64: model.init_from=folder has 48: leave the key"),
    ("init_from: folder, tie_embeddings: true", "model.tie_embeddings=true: model.init_from=folder has"),
    ("init_from: folder, norm_eps: 1e-6", "model.norm_eps=1e-06: model.init_from=folder has 1e-05"),
    ("init_from: folder, vocab: 40", "model.vocab=40: model.init_from=folder has 50: a voc"),
    ("init_from: folder, kind: encoder", "model.kind=encoder: model.init_from=folder is of model.kind"),
    ("init_from: gpt2", "model.init_from='gpt2': no such folder: give a Hugging Face folder on disk"),
    ("init_from: empty", "model.init_from='empty': no config.json there, so no Hugging Face folder; "),
    ("init_from: nowhere@3", "model.init_from='nowhere@3': no such folder"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(place: Path, model: str, message: str) -> None:
    (place / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        load(place, model)
    assert message in str(caught.value)


def test_an_encoder_may_become_one_with_another_head(monkeypatch: pytest.MonkeyPatch) -> None:
    source: Any = EncoderConfig(layers=2, hidden=48, heads=4, vocab=VOCAB, window=8)
    monkeypatch.setattr(first_keys, "origin", lambda given: given)
    monkeypatch.setattr(first_keys, "model_of", lambda place: source)
    filled = first_keys.fill({"kind": "text_classes", "classes": 3, "init_from": "bert"})
    assert (filled["hidden"], filled["window"], filled["classes"]) == (48, 8, 3)
    assert "tie_embeddings" not in filled  # a key of the head that is left away
