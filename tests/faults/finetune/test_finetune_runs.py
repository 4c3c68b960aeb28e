"""Whole runs that begin from another run: killed and run again, read back, refused where the base changed."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from picture_runs import CLASSES, PictureCase, build
from pictures import write_folders
from ranks import RankPools
from runs import assemble, state_of
from trainer.checkpoint import folder as folders
from trainer.checkpoint.manifest import read_manifest
from trainer.config import reading
from trainer.first_weights.fill import fill
from trainer.first_weights.match import Match
from trainer.first_weights.open import open_source
from trainer.models.tuned.plan import is_added
from trainer.trained.weights import load_model
from whole_runs import environment, failure, records, tensors, train_here

KILLER = Path(__file__).resolve().parents[3] / "tests/helpers/programs/killer.py"
VISION = {"kind": "vision", "image_size": 16, "patch_size": 4, "layers": 2, "hidden": 32, "heads": 4}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "probe": {"method": "probe"},
    "lora": {"method": "lora", "rank": 4, "targets": ["all"]},
    "adapters": {"method": "adapters", "bottleneck": 6},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of pictures of three classes, and a run that has learnt their hidden patches."""
    folder = tmp_path_factory.mktemp("home")
    write_folders(folder / "in", ("cat", "dog", "yak"), 20)
    prepare(
        [str(folder / "in")], folder / "corpus", tokenizer="bytes", recipe=Recipe(block_documents=5),
        heldout=0.2, workers=1, progress=False,
    )  # fmt: skip
    sections = {"model": VISION | {"head": "pixels"}, "objective": {"kind": "masked_images"}}
    assert train_here(written(folder, folder / "base", **sections, train={"steps": 6}))
    return folder


def written(home: Path, run: Path, **sections: dict[str, Any]) -> Path:
    config: dict[str, Any] = {
        "name": run.name,
        "run_dir": str(run),
        "data": {
            "sources": [{"path": str(home / "corpus/train")}],
            "heldout": [{"path": str(home / "corpus/heldout"), "name": "held"}],
            "seq_len": 1,
            "packing": "one",
            "image_size": 16,
        },
        "optim": {"lr": 1.0e-2},
        "train": {"steps": 12, "global_batch": 8, "micro_batch": 2, "eval_every": 6},
        "checkpoint": {"every": 4, "keep": 10},
    }
    for section, values in sections.items():
        config[section] = config.get(section, {}) | values
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def tuned(home: Path, run: Path, method: str, **sections: dict[str, Any]) -> Path:
    """The config of a run that tells the classes apart, from the base on."""
    model = {"init_from": str(home / "base"), "head": "classes", "classes": 3}
    return written(
        home,
        run,
        model=model | sections.pop("model", {}),
        objective={"kind": "classification"},
        finetune=METHODS[method] | sections.pop("finetune", {}),
        **sections,
    )


def newest(run: Path) -> Path:
    return folders.step_folder(run / "checkpoints", folders.steps(run / "checkpoints")[0])


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m == "lora" else pytest.mark.slow) for m in METHODS]
)
def test_killed_and_run_again_is_bit_identical(method: str, home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(KILLER), "step", "7", str(tuned(home, tmp_path / "killed", method))]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    assert train_here(killed)
    assert train_here(tuned(home, undisturbed, method))
    assert records(killed / "metrics.jsonl") == records(undisturbed / "metrics.jsonl")
    found, expected = tensors(killed), tensors(undisturbed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m in ("lora", "adapters") else pytest.mark.slow) for m in METHODS]
)
def test_a_checkpoint_holds_what_is_trained_and_the_model_is_read_back_whole(
    method: str, home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train_here(tuned(home, run, method, train={"steps": 4}))
    held = {
        name.removeprefix("model.") for name in read_manifest(newest(run)).tensors if name[:6] == "model."
    }
    base = {name.removeprefix("model.") for name in read_manifest(newest(home / "base")).tensors}
    if method == "full":
        assert held > {name for name in base if name.startswith("layers.")}
    else:
        assert all(is_added(name) or name.startswith("head.") for name in held)
    model = load_model(reading.load(run), newest(run))
    names = {name for name, _ in model.named_parameters()}
    assert any(map(is_added, names)) == (method == "adapters")
    before = load_model(reading.load(home / "base"), newest(home / "base"))
    queries = "layers.0.attention.wq.weight"
    same = torch.equal(model.get_parameter(queries), before.get_parameter(queries))
    assert same == (method in ("probe", "adapters"))
    (event,) = (one for one in records(run / "events.jsonl") if one["kind"] == "init")
    assert "head.layers.0.weight" in event["drawn"]


def test_a_base_that_changed_is_one_line(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "base", other := tmp_path / "base")
    config = tuned(home, tmp_path / "run", "lora", model={"init_from": str(other)}, train={"steps": 4})
    assert train_here(config)
    further = written(home, other, model=model_of(other), objective={"kind": "masked_images"})
    assert train_here(further, "train.steps=12")
    assert train_here(config, "train.steps=8")  # beside the step of the base that it began with
    for change in ((), (f"model.init_from={other}@12",)):
        if not change:
            shutil.rmtree(folders.step_folder(other / "checkpoints", 6))
        wrong = "its weights have the hash" if change else "has no checkpoint of that step; those there:"
        with pytest.raises((ValueError, RuntimeError), match=wrong) as refused:
            train_here(config, "train.steps=12", *change)
        assert "\n" not in str(refused.value)


def model_of(run: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((run / "config.yaml").read_text())["model"])


def test_finetune_needs_a_model_to_begin_from(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = {"kind": "vision", "image_size": 16, "classes": 3}
    config = written(home, tmp_path / "run", model=model, objective={"kind": "classification"})
    code, line = failure(capfd, "finetune", str(config))
    assert code == 2 and "model.init_from" in line
    code, line = failure(capfd, "finetune", str(config), "finetune.method=probe")
    assert code == 2 and "would stay as they are drawn" in line


def figures(run: Path, step: int) -> dict[str, float]:
    found = records(run / "metrics.jsonl")
    return dict(next(one["eval"]["held"] for one in found if one["step"] == step and "eval" in one))


def begun(context: Any, case: PictureCase, given: str) -> Any:
    """The state of an engine whose weights are those of `given`."""
    engine = build(case, context.rank, context.world)
    try:
        source = open_source(given)
        fill(engine.chunks(), source, Match(frozenset(source.parameters), {}, (), ()))
        engine.load(engine.scalars())
        return state_of(engine)
    finally:
        engine.close()


def test_a_run_begins_from_one_that_trained_a_part_of_its_model(home: Path, tmp_path: Path) -> None:
    """LoRA's matrices are merged as they are read."""
    first, then = tmp_path / "first", tmp_path / "then"
    assert train_here(tuned(home, first, "lora", train={"steps": 2}), "train.eval_every=1")
    still = {"lr": 1e-30, "weight_decay": 0.0}
    config = tuned(home, then, "full", model={"init_from": str(first)}, optim=still, train={"steps": 1})
    assert train_here(config, "train.eval_every=1")
    before, after = figures(first, 2), figures(then, 1)
    assert before["loss"] == pytest.approx(after["loss"], rel=1e-5)
    assert before["loss"] != pytest.approx(figures(first, 1)["loss"], rel=1e-3)
    (event,) = (one for one in records(then / "events.jsonl") if one["kind"] == "init")
    assert event["drawn"] == [] and event["dropped"] == ["embed.masked"]


@pytest.mark.slow
def test_merged_weights_are_the_same_on_any_layout(home: Path, tmp_path: Path, ranks: RankPools) -> None:
    """Of a run with LoRA that itself began from one."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert train_here(tuned(home, first, "lora", model={"classes": CLASSES}, train={"steps": 4}))
    model = {"init_from": str(first), "classes": CLASSES}
    assert train_here(tuned(home, second, "lora", model=model, train={"steps": 4}))
    expected = dict(load_model(reading.load(second), newest(second)).named_parameters())
    model = {**VISION, "head": "classes", "classes": CLASSES}
    for world, parallel in ((2, {"zero": 3}), (4, {"pp": 2, "tp": 2})):
        case = PictureCase(
            model=model,
            objective={"kind": "classification"},
            tokens=False,
            parallel=parallel,
            global_batch=8,
            micro_batch=1,
        )
        found = assemble(ranks(world).run(begun, case, str(second)))
        for name, tensor in expected.items():
            assert torch.equal(found[f"model.{name}"], tensor), (parallel, name)


def test_layers_that_cannot_be_merged_are_no_beginning(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tuned(home, tmp_path / "bottleneck", "adapters", train={"steps": 2}))
    again = tuned(home, tmp_path / "again", "lora", model={"init_from": str(tmp_path / "bottleneck")})
    capfd.readouterr()  # the first run's figures
    code, line = failure(capfd, "finetune", str(again))
    assert code == 2 and "finetune.method=adapters, whose layers cannot be merged into the model" in line
