"""Cluster files, time limits, and what a submission is read back as."""

import dataclasses
import re
import time
from pathlib import Path

import pytest

from launch import cli
from launch.cluster import cluster as clusters
from launch.cluster import script, submission
from launch.cluster.cluster import Cluster
from launch.cluster.submission import Ending
from trainer.config import keys
from trainer.config.plain import plain


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("", None), ("UNLIMITED", None), ("90", 5400), ("1:30", 90), ("1:30:00", 5400), ("2-0", 172_800)),
        *(("1-2:30", 95_400), ("1-2:30:15", 95_415), ("0", 0)),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, seconds) -> None:
    assert script.time_seconds(text) == seconds


@pytest.mark.parametrize("text", ["90s", "1d", "1h", "-5", "1:2:3:4", "1-", "1-2-3", "1.5", "٩٠", " 5", "a"])
def test_other_times_are_refused(text) -> None:
    with pytest.raises(ValueError, match="not a time limit"):
        script.time_seconds(text)


def test_a_submission_is_read_as_it_was_written(tmp_path) -> None:
    folder = submission.new_folder(tmp_path / "run \udcff")
    cluster = Cluster(nodes=3, sbatch={"a": "b\nc"}, env={"X": "\udcff"})
    sub = submission.Submission("r", str(folder), "/r", "/w", "/c", "py", "", cluster, overrides=["x=$(y)"])
    submission.write(sub)
    assert submission.read(folder) == sub
    file = folder / "submission.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version 2, and this germinal reads 1"):
        submission.read(folder)
    assert submission.ending(folder) is None
    submission.end(folder, Ending(time.time(), "1", 0, "done"))
    assert submission.ending(folder).reason == "done"


@pytest.mark.parametrize("name", ["slurm", "local", "kubernetes"])
def test_the_example_file_is_right_also_with_every_line_that_is_commented_out(name, tmp_path) -> None:
    file = Path(__file__).parents[3] / f"configs/cluster/{name}.yaml"
    found = clusters.read(file, {})
    assert found.backend == name and found.world == 1
    every = tmp_path / "every.yaml"
    every.write_text(re.sub(r"^# ( *[a-z_]+:( |$))", r"\1", file.read_text(), flags=re.MULTILINE))
    assert plain(clusters.read(every, {})) != plain(found)
    if name == "slurm":
        keys = {*re.findall(r"^([a-z_]+):", every.read_text(), flags=re.MULTILINE)}
        assert keys == {field.name for field in dataclasses.fields(Cluster)} - {"kubernetes"}


def test_the_document_names_every_key_and_every_option() -> None:
    page = (Path(__file__).parents[3] / "docs/cluster.md").read_text()
    for key in keys.keys(Cluster):
        assert f"`{key.name}`" in page, key.name
    options = {o for action in cli.parse(["submit", "x"]).parser._actions for o in action.option_strings}
    assert {o for o in options if f"`{o}" not in page and f" {o}" not in page} == {"-h", "--help"}
