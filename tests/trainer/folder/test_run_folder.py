"""A run is its folder: moved, copied or linked to, the run in that folder is what goes on."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from data.corpus.manifest import read_manifest
from trainer.config import reading
from trainer.folder import run_folder
from whole_runs import make_corpus, newest, records, train_here, write_config

YAML = """
name: tiny
model: {layers: 2, hidden: 64, heads: 4, vocab: 512}
data: {sources: [{path: corpora/code}], seq_len: 64}
train: {steps: 10, global_batch: 8, micro_batch: 2}
"""


def make_run(folder: Path, run_dir: str = "runs/tiny") -> Path:
    """A folder as a run leaves it; `run_dir` is what older runs wrote into their config."""
    (folder / "configs").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"{YAML}run_dir: {run_dir}\n")
    (folder / "configs" / "step-4.yaml").write_text(f"{YAML}run_dir: {run_dir}\n")
    (folder / "events.jsonl").write_text("")
    return folder


@pytest.mark.parametrize("given", ["", "config.yaml", "configs/step-4.yaml"])
def test_a_config_in_a_run_folder_means_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    run = make_run(tmp_path / "moved")
    assert reading.load(run / given).folder == run
    monkeypatch.chdir(run)
    assert reading.load(given or ".").folder.resolve() == run
    (tmp_path / "latest").symlink_to(run)
    assert reading.load(tmp_path / "latest" / given).folder == tmp_path / "latest"
    (tmp_path / "link.yaml").symlink_to(run / "config.yaml")
    assert reading.load(tmp_path / "link.yaml").folder == run
    assert run_folder.find(run / given) == run


def test_an_override_says_another_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "moved")
    assert reading.load(run, ["run_dir=/elsewhere"]).folder == Path("/elsewhere")
    assert reading.load(run, ["name=other"]).folder == Path("runs/other")
    assert reading.load(run, ["name=other", "run_dir=/elsewhere"]).folder == Path("/elsewhere")


def test_an_ordinary_folder_with_a_config_is_no_run(tmp_path: Path) -> None:
    for number, name in enumerate(("config.yaml", "configs/step-4.yaml", "configs/mine.yaml")):
        file = tmp_path / f"project-{number}" / name
        file.parent.mkdir(parents=True)
        file.write_text(YAML)
        (tmp_path / f"project-{number}" / "checkpoints").mkdir()
        assert reading.load(file).folder == Path("runs/tiny"), name
    run = make_run(tmp_path / "project-3")
    (run / "configs" / "mine.yaml").write_text(YAML)
    assert reading.load(run / "configs" / "mine.yaml").folder == Path("runs/tiny")
    with pytest.raises(
        ValueError, match=r"project-0 is no run folder: beside config\.yaml .* give .*\.yaml$"
    ):
        reading.load(tmp_path / "project-0")
    with pytest.raises(ValueError, match=r"project-1 is no run folder: .*; give one such as runs/"):
        reading.load(tmp_path / "project-1")
    for reader in (reading.load, run_folder.find):
        with pytest.raises(ValueError, match=r"; give one of the 1 in it, such as \S+/project-3, or"):
            reader(tmp_path)
        with pytest.raises(
            ValueError, match=r"configs is no run folder, but lies in one: give \S+/project-3$"
        ):
            reader(run / "configs")


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "quickstart")
    for ask in (reading.load, run_folder.find):
        with pytest.raises(ValueError, match=f"quikstart: no such .*did you mean {run}"):
            ask(tmp_path / "quikstart")


def test_a_relative_corpus_that_is_not_there_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"corpora/a is not a corpus: no such folder in {tmp_path}, where"):
        read_manifest("corpora/a")


@pytest.mark.slow
def test_a_moved_run_goes_on_and_a_copy_continues_the_copy(tmp_path: Path) -> None:
    file = write_config(tmp_path, make_corpus(tmp_path), model__layers=1, train__eval_every=0, train__steps=4)
    assert train_here(file)
    original, copy, moved = tmp_path / "run", tmp_path / "copy", tmp_path / "deep" / "moved"
    assert yaml.safe_load((original / "config.yaml").read_text())["run_dir"] == ""
    shutil.copytree(original, copy)
    moved.parent.mkdir()
    assert train_here(copy, "train.steps=6")
    assert [newest(run).name for run in (original, copy)] == ["step-000000004", "step-000000006"]
    original.rename(moved)
    assert train_here(moved / "config.yaml", "train.steps=6")
    assert not original.exists()
    losses = [line["step"] for line in records(moved / "metrics.jsonl") if "loss" in line]
    assert losses == [1, 2, 3, 4, 5, 6]
    assert records(moved / "metrics.jsonl") == records(copy / "metrics.jsonl")


def test_a_moved_run_keeps_its_id_and_a_copy_has_its_own(tmp_path: Path) -> None:
    one, moved, copy = (tmp_path / name for name in ("one", "moved", "copy"))
    one.mkdir()
    first = run_folder.identity(one)
    assert run_folder.identity(one) == first
    (tmp_path / "link").symlink_to(one)
    assert run_folder.identity(tmp_path / "link") == first
    shutil.copytree(one, copy)
    own = run_folder.identity(copy)
    assert own != first and run_folder.identity(copy) == own
    one.rename(moved)
    one.mkdir()  # another run, where the first had been
    assert run_folder.identity(moved) == first
    assert run_folder.identity(one) not in (first, own)
    shutil.copytree(moved, tmp_path / "other disk")  # what `mv` does there
    shutil.rmtree(moved)
    assert run_folder.identity(tmp_path / "other disk") == first
    assert run_folder.identity(copy) == own


def test_every_config_that_a_run_has_had_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run_folder.write_config(run, b"a: 1", 0)
    run_folder.write_config(run, b"a: 1", 4)
    run_folder.write_config(run, b"a: 2", 8)
    kept = {file.name: file.read_bytes() for file in (run / "configs").iterdir()}
    assert kept == {"step-000000000.yaml": b"a: 1", "step-000000008.yaml": b"a: 2"}
    assert (run / "config.yaml").read_bytes() == b"a: 2"
    run_folder.write_config(run, b"a: 3", 8)  # two starts from one checkpoint
    again = {file.name: file.read_bytes() for file in (run / "configs").iterdir()}
    assert again == kept | {"step-000000008-2.yaml": b"a: 3"}
    old = tmp_path / "old"  # a run of before: its only config is not lost
    old.mkdir()
    (old / "config.yaml").write_bytes(b"a: 1")
    run_folder.write_config(old, b"a: 2", 8)
    assert sorted(file.name for file in (old / "configs").iterdir()) == sorted(kept)


@pytest.mark.slow
def test_making_a_decayed_run_longer_is_said_in_full_with_the_way_around(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_config(
        tmp_path,
        make_corpus(tmp_path),
        model__layers=1,
        train__eval_every=0,
        train__steps=20,
        train__global_batch=2,
        optim={"lr": 1.0e-3, "schedule": "wsd", "decay_fraction": 0.5, "warmup_steps": 0},
        checkpoint={"every": 2, "keep": 2, "keep_every": 6, "async": False},
    )
    assert train_here(file)
    run = tmp_path / "run"
    kept = sorted(int(entry.name[5:]) for entry in (run / "checkpoints").glob("step-*"))
    assert kept == [6, 10, 12, 18, 20], "the newest two, the one before the decay, the milestones"
    shutil.copytree(run, tmp_path / "copy")
    assert train_here(run, "train.steps=22", "data.heldout=[]")
    told = [line for line in records(run / "events.jsonl") if line["kind"] in ("resume", "schedule")]
    heldout = json.dumps([{"path": f"{tmp_path}/corpus/heldout", "name": "made_up"}])
    assert told[0]["changed"] == [f"data.heldout {heldout} → []", "train.steps 20 → 22"], "in full"
    assert told[1]["reason"] == (
        "the learning rate was 0.0001 at step 20, and is 0.000181818 at step 21; to go on from before the "
        "decay instead, copy the run folder, remove the checkpoints after step-000000010 in the copy, and "
        "train the copy"
    )
    assert told[1]["reason"] in capfd.readouterr().err
    assert [entry.name for entry in sorted((run / "configs").iterdir())] == [
        "step-000000000.yaml",
        "step-000000020.yaml",
    ]
    for step in (12, 18, 20):
        shutil.rmtree(tmp_path / "copy" / "checkpoints" / f"step-{step:09d}")
    assert train_here(tmp_path / "copy", "train.steps=22")
    rates = [line["lr"] for line in records(tmp_path / "copy" / "metrics.jsonl") if "loss" in line]
    assert rates[:12] == [1.0e-3] * 12 and rates[-1] == pytest.approx(1.0e-3 / 11)
    assert not [line for line in records(tmp_path / "copy" / "events.jsonl") if line["kind"] == "schedule"]
