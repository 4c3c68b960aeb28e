"""A run is its folder: moved, copied or linked to, the run in that folder is what goes on."""

import shutil
from pathlib import Path

import pytest
import yaml

from data.manifest import read_manifest
from trainer import config, run_folder
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
    assert config.load(run / given).folder == run
    monkeypatch.chdir(run)
    assert config.load(given or ".").folder.resolve() == run
    (tmp_path / "latest").symlink_to(run)
    assert config.load(tmp_path / "latest" / given).folder == tmp_path / "latest"
    (tmp_path / "link.yaml").symlink_to(run / "config.yaml")
    assert config.load(tmp_path / "link.yaml").folder == run
    assert run_folder.find(run / given) == run


def test_an_override_says_another_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "moved")
    assert config.load(run, ["run_dir=/elsewhere"]).folder == Path("/elsewhere")
    assert config.load(run, ["name=other"]).folder == Path("runs/other")
    assert config.load(run, ["name=other", "run_dir=/elsewhere"]).folder == Path("/elsewhere")


def test_an_ordinary_folder_with_a_config_is_no_run(tmp_path: Path) -> None:
    for number, name in enumerate(("config.yaml", "configs/step-4.yaml", "configs/mine.yaml")):
        file = tmp_path / f"project-{number}" / name
        file.parent.mkdir(parents=True)
        file.write_text(YAML)
        (tmp_path / f"project-{number}" / "checkpoints").mkdir()
        assert config.load(file).folder == Path("runs/tiny"), name
    run = make_run(tmp_path / "project-3")
    (run / "configs" / "mine.yaml").write_text(YAML)
    assert config.load(run / "configs" / "mine.yaml").folder == Path("runs/tiny")
    with pytest.raises(
        ValueError, match=r"project-0 is no run folder: beside config\.yaml .* give .*\.yaml$"
    ):
        config.load(tmp_path / "project-0")
    with pytest.raises(ValueError, match=r"project-1 is no run folder: it has no config\.yaml"):
        config.load(tmp_path / "project-1")


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "quickstart")
    for ask in (config.load, run_folder.find):
        with pytest.raises(ValueError, match=f"quikstart: no such .*did you mean {run}"):
            ask(tmp_path / "quikstart")


def test_a_relative_corpus_that_is_not_there_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"corpora/a is not a corpus: no such folder in {tmp_path}, where"):
        read_manifest("corpora/a")


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
    assert [line["step"] for line in records(moved / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert records(moved / "metrics.jsonl") == records(copy / "metrics.jsonl")
