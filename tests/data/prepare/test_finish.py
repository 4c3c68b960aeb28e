"""The end of `prepare`: what it holds while it goes over the records of all units."""

import json
import tracemalloc
from pathlib import Path

import pytest

from data.prepare import finish as ending
from data.prepare.preparation import TRAIN, Preparation
from data.prepare.recipe import Recipe
from data.prepare.report.composition import Profile
from data.prepare.tally import Tally
from data.prepare.units import Unit
from data.tokenizer import loading

CLASSES = 200


def write_records(preparation: Preparation, count: int) -> list[Unit]:
    """Records of units of one shard each, whose documents have one of many classes."""
    names = [f"a class with a name, the number {number}" for number in range(CLASSES)]
    entry = {"file": "made.tar", "bytes": 1, "sha256": "0" * 64, "documents": CLASSES, "tokens": 1}
    segment = {
        "shards": {TRAIN: entry | {"text_bytes": 1, "index_xxh3": "0" * 32}},
        "columns": {TRAIN: {"names": ["label"], "classes": names, "media": []}},
        "classes": {TRAIN: dict.fromkeys(names, -1)},
        "profiles": {TRAIN: Profile().as_dict()},
        "tally": Tally().as_dict(),
    }
    units = [Unit(number, ()) for number in range(count)]
    for unit in units:
        preparation.record(unit, "units").write_text(json.dumps({"segments": [segment]}))
    return units


def test_of_a_record_no_more_is_held_than_its_entry_of_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """31,000 units that name a thousand classes each would be gigabytes of names."""
    preparation = Preparation(tmp_path, Recipe(), 0.0, False)
    (tmp_path / "units").mkdir()
    preparation.tokenizer.write_text(loading.given("bytes").to_str())
    monkeypatch.setattr(ending, "_place", lambda units, entry, *_: entry)
    for name in ("write_datacard", "close_corpus"):
        monkeypatch.setattr(ending, name, lambda *_: None)
    most = {}
    for count in (20, 20, 220):  # the first time it also imports
        units = write_records(preparation, count)
        tracemalloc.start()
        ending.finish(preparation, units, tmp_path / "out", {"tokenizer": "bytes"}, split=False)
        most[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most[220] - most[20] < 200 * 2048
