"""A rank's start on its own: what it opens and reads in a world of 64 ranks and in one of 1,024."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/scale"))

import world as bench  # the file of that folder

from fake_world import apart
from made_corpus import linked_corpus
from whole_runs import environment, make_corpus, meeting_place, write_config

COUNTED = Path(__file__).parents[1] / "helpers/programs/counted_talk.py"


def starts(scratch: Path, worlds: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """The last rank's start in each (world, shards)."""
    found = []
    for world, shards in worlds:
        corpus = linked_corpus(scratch / str(shards), shards)
        manifest = bench.written_manifest(scratch, world)
        found.append(bench.start(world - 1, world, manifest, corpus, "model.layers=4"))
    return found


def test_a_start_opens_and_reads_as_much_in_a_world_of_16_times_the_ranks(tmp_path: Path) -> None:
    few, many = apart(starts, tmp_path, [(64, 300), (1024, 1200)])
    assert few["groups"] == many["groups"] == 3
    assert few["pieces"] == many["pieces"]
    assert many["files"] < 1.5 * few["files"] < 300, "a catalogue, and shards of an era"
    assert many["index_bytes"] < few["index_bytes"] + 900 * 600, "a line of the catalogue a shard"
    assert abs(many["manifest_bytes"] - few["manifest_bytes"]) < 100, "digits"
    assert many["owned_gb"] < few["owned_gb"] / 15


def talk(config: Path, *overrides: str) -> list[dict[str, Any]]:
    """What each of two ranks of a run exchanged."""
    env = environment() | meeting_place() | {"WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", str(COUNTED), str(config), *overrides],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [dict(json.loads(one.splitlines()[-1])) for one in said]


def test_no_rank_of_a_start_reads_a_value_of_every_rank(tmp_path: Path) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path))
    for steps in (2, 4):  # a first start, and one that resumes
        for rank in talk(config, f"train.steps={steps}"):
            assert rank["gathered"] == []
            assert 10 < rank["others"] < 60
