"""A run that begins from another one's checkpoint, from the command line to the record."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.checks import check_job
from launch.job import Job
from stock_models import write_folder
from trained_runs import make_trained_run, model_config
from trainer.checkpoint import folder as checkpoints
from trainer.config import reading
from trainer.first_weights.open import open_base
from trainer.models.decoder.config import DecoderConfig
from trainer.models.tuned.config import FinetuneConfig
from trainer.ranks import Ranks
from whole_runs import make_corpus, train_here, write_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    corpus = make_corpus(folder)
    (folder / "earlier").mkdir()
    steps = {"train__steps": 4, "checkpoint__every": 2, "train__eval_every": 2, "train__threads": 1}
    config = write_config(folder / "earlier", corpus, **steps)
    train_here(config)
    return folder


def config_of(place: Path, name: str, model: dict[str, Any]) -> Path:
    """A run of one step whose learning rate moves nothing, and which is evaluated after that."""
    (place / name).mkdir()
    return write_config(
        place / name,
        place / "corpus",
        model=model,
        train__steps=1,
        optim__lr=1e-30,
        optim__weight_decay=0,
        train__threads=1,
        train__eval_every=0,
    )


def heldout_loss(run: Path, step: int) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line["eval"]["made_up"]["loss"] for line in lines if line["step"] == step and "eval" in line)


def test_a_run_begins_where_the_step_of_another_left(place: Path) -> None:
    earlier = place / "earlier" / "run"
    config = config_of(place, "fork", {"init_from": f"{earlier}@2"})
    train_here(config)
    run = place / "fork" / "run"
    assert heldout_loss(run, 1) == pytest.approx(heldout_loss(earlier, 2), rel=1e-5)
    assert heldout_loss(run, 1) != pytest.approx(heldout_loss(earlier, 4), rel=1e-4)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    init = next(event for event in events if event["kind"] == "init")
    assert init["source"] == str(earlier / "checkpoints" / "step-000000002")
    assert init["drawn"] == init["dropped"] == init["enlarged"] == []
    assert len(init["hash"]) == 32
    written = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert (written["layers"], written["kv_heads"]) == (4, 2)


def job(config: Path, *overrides: str) -> Job:
    return Job(str(config), overrides)


def test_what_a_run_begins_from_is_looked_at_before_any_rank_starts(place: Path) -> None:
    config = config_of(place, "checked", {"init_from": f"{place / 'earlier' / 'run'}@3"})
    with pytest.raises(ValueError, match=r"has no such checkpoint; those there: \[2, 4\]$"):
        check_job(job(config))
    folder = place / "folder"
    write_folder(folder, DecoderConfig(layers=1, hidden=48, heads=4, vocab=288))
    check_job(job(config, f"model.init_from={folder}"))
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(RuntimeError, match=r"missing, but model\.safetensors\.index\.json names it"):
        check_job(job(config, f"model.init_from={folder}"))


def test_a_base_whose_step_is_gone_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    """A run that froze a part of another one's step, of which checkpoint.keep has left only others."""
    earlier, own = tmp_path / "earlier", tmp_path / "tuned"
    make_trained_run(earlier)
    model = replace(model_config(tied=True), init_from=str(earlier))
    make_trained_run(own, model=model)
    cfg = replace(reading.load(own), finetune=FinetuneConfig(method="lora"))
    for step in (1, 2):
        where = str(checkpoints.step_folder(earlier / "checkpoints", 1))
        state = checkpoints.step_folder(own / "checkpoints", step) / checkpoints.STATE
        state.write_text(json.dumps({"identity": {"base": {"where": where, "hash": "0123"}}}))
    assert open_base(cfg, Ranks(), run=own) is not None
    shutil.rmtree(checkpoints.step_folder(earlier / "checkpoints", 1))
    message = (
        rf"^model\.init_from={earlier}@1: {earlier} has no checkpoint of that step; those there: \[2\]: "
        r"finetune\.method=lora reads what it freezes from there at every start: bring the step back from a "
        r"copy, or begin a new run from another \(checkpoint\.keep_every of a run keeps steps\)\n"  # a note
    )
    for given in (cfg, replace(cfg, model=replace(model, init_from=f"{earlier}@1"))):
        with pytest.raises(ValueError, match=message):
            open_base(given, Ranks(), run=own)


def test_another_tokenizer_is_refused(place: Path) -> None:
    copy = place / "copy"
    shutil.copytree(place / "earlier" / "run", copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[50:52]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = config_of(place, "other", {"init_from": str(copy)})
    with pytest.raises(ValueError, match=r"its tokenizer has .* prepare the corpus with --tokenizer"):
        train_here(config)
