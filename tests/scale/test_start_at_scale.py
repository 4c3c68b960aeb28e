"""A rank's start on its own: what it opens and reads in a world of 64 ranks and in one of 1,024."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/scale"))

import world as bench  # the file of that folder

from fake_world import apart
from made_corpus import linked_corpus


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
    assert (many["manifest_bytes"] - few["manifest_bytes"]) / (1024 - 64) < 120, "bytes of a rank"
    assert many["owned_gb"] < few["owned_gb"] / 15
