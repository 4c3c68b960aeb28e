"""Duplicates found by tasks: what a plain search over all documents finds, however the documents are shared
out and whatever happens to the tasks.
"""

import os
import random
from pathlib import Path

import numpy as np
import pytest

from data.prepare.cleaning.dedup import KEPT, NEAR, SAME, bands
from data.prepare.duplicates import connected, exchange, shares, verdicts
from data.prepare.duplicates import find as steps
from data.prepare.preparation import Preparation, write_json
from data.prepare.recipe import Recipe
from data.prepare.units import Run, Unit
from unruly import Unruly, in_order

UNITS = (40, 0, 1, 75, 34)  # documents
THRESHOLD = 0.8


def surveyed(tmp_path: Path, deduplicate: str) -> tuple[Preparation, list[Unit], np.ndarray, np.ndarray]:
    """A preparation after its survey, with (contents, signatures) of documents that are copies and near
    copies of one another; in some chains each is near its neighbours alone.
    """
    rng, count = np.random.default_rng(0), sum(UNITS)
    width = int(np.prod(bands(THRESHOLD)))
    signatures = rng.integers(1, 1 << 32, (count, width), dtype=np.uint32)
    contents = rng.integers(0, 1 << 63, (count, 3), dtype=np.uint64)
    contents[:, shares.SIZE] %= 1000
    for document in range(1, count):
        other = int(rng.integers(document))
        if rng.random() < 0.6:
            signatures[document] = signatures[other]
            changed = rng.random(width) < rng.choice([0.0, 0.1, 0.17, 0.3])
            signatures[document, changed] = rng.integers(1, 1 << 32, int(changed.sum()), dtype=np.uint32)
        if rng.random() < 0.2:
            contents[document, :2] = contents[other, :2]
    signatures[rng.random(count) < 0.05] = 0  # too short to have one
    preparation = Preparation(tmp_path, Recipe(deduplicate=deduplicate, near_threshold=THRESHOLD), 0.0, True)
    (tmp_path / "survey").mkdir()
    units = [Unit(number, ()) for number in range(len(UNITS))]
    at = 0
    for unit, documents in zip(units, UNITS):
        record = preparation.record(unit, "survey")
        contents[at : at + documents].tofile(record.with_suffix(f".{shares.CONTENT}"))
        signatures[at : at + documents].tofile(record.with_suffix(f".{shares.SIGNATURES}"))
        write_json(record, {"documents": documents})
        at += documents
    return preparation, units, contents, signatures


def plain(contents: np.ndarray, signatures: np.ndarray, near: bool) -> list[int]:
    """The verdicts, found pair by pair in one process."""
    seen: set[tuple[int, int]] = set()
    found = []
    for high, low, _ in contents.tolist():
        found.append(SAME if (high, low) in seen else KEPT)
        seen.add((high, low))
    if not near:
        return found
    first = list(range(len(found)))

    def root(document: int) -> int:
        while first[document] != document:
            document = first[document]
        return document

    count, rows = bands(THRESHOLD)
    for band in range(count):
        leaders: dict[bytes, int] = {}
        for document, values in enumerate(signatures):
            if found[document] == KEPT and values.any():
                leader = leaders.setdefault(values[band * rows : (band + 1) * rows].tobytes(), document)
                if (values == signatures[leader]).mean() >= THRESHOLD:
                    one, other = sorted((root(leader), root(document)))
                    first[other] = one
    return [NEAR if root(document) != document else verdict for document, verdict in enumerate(found)]


def verdicts_by(tmp_path: Path, run: Run, deduplicate: str) -> tuple[list[int], list[int]]:
    """(what tasks find, what a plain search finds)"""
    preparation, units, contents, signatures = surveyed(tmp_path, deduplicate)
    steps.find(preparation, units, run)
    left = sorted(path.name for path in shares.folder(preparation).iterdir() if path.is_dir())
    assert left == [verdicts.STEP]
    found = [verdict for unit in units for verdict in verdicts.of_unit(preparation, unit).tolist()]
    counts = verdicts.found(preparation)["counts"]
    for verdict, step in ((SAME, "removed.duplicate"), (NEAR, "removed.near_duplicate")):
        mine = np.array(found) == verdict
        assert counts.get(step, [0, 0]) == [mine.sum(), contents[mine, shares.SIZE].sum()]
    return found, plain(contents, signatures, deduplicate == "near")


@pytest.mark.parametrize("size", [11, 64, 1000])
@pytest.mark.parametrize("deduplicate", ["exact", "near"])
def test_shares_of_any_size_find_what_a_plain_search_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deduplicate: str, size: int
) -> None:
    monkeypatch.setattr(steps, "_share_size", lambda *_: size)
    found, asked = verdicts_by(tmp_path, in_order, deduplicate)
    assert found == asked
    assert found.count(SAME) > 10 and (deduplicate == "exact" or found.count(NEAR) > 30)


@pytest.mark.parametrize("seed", range(3))
def test_tasks_in_any_order_that_die_and_run_twice_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(steps, "_share_size", lambda *_: 30)
    unruly = Unruly(seed)
    found, asked = verdicts_by(tmp_path, unruly.run, "near")
    assert found == asked
    assert unruly.died > 10 and unruly.twice > 10


def test_a_search_that_is_killed_between_any_two_tasks_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_share_size", lambda *_: 50)
    preparation, units, contents, signatures = surveyed(tmp_path, "near")
    rng, kills = random.Random(1), 0
    while not verdicts.are_stored(preparation):
        unruly = Unruly(kills, ends_after=rng.randrange(1, 12))
        try:
            steps.find(preparation, units, unruly.run)
        except Unruly.Ended:
            kills += 1
    found = [verdict for unit in units for verdict in verdicts.of_unit(preparation, unit).tolist()]
    assert found == plain(contents, signatures, near=True)
    assert kills > 5


def test_a_chain_of_pairs_is_one_component_in_few_rounds(tmp_path: Path) -> None:
    """Document n is near n − 1 alone: the first one stays, after about log₂ n rounds."""
    total, size, ran = 300, 64, []
    preparation = Preparation(tmp_path, Recipe(deduplicate="near"), 0.0, True)
    shares.folder(preparation).mkdir(parents=True)

    def run(function: object, *rest: object) -> None:
        ran.append(function)
        in_order(function, *rest)  # type: ignore[arg-type]

    made = steps._Steps(preparation, run, shares.Share(0, size, total))
    (shares.folder(preparation) / "pairs-0").mkdir()
    for share in made.shares("pairs-0"):
        later = share.documents[share.documents > 0]
        shares.write_rows(shares.output(preparation, share), np.stack([later, later - 1], axis=1))
    assert steps._connected(made) == "later"
    assert ran.count(connected.large) <= 12
    files = sorted((shares.folder(preparation) / "later").glob("*.npy"))
    found = [exchange.read_part(path, part, len(files))[:, 0] for path in files for part in range(len(files))]
    assert sorted(np.concatenate(found).tolist()) == list(range(1, total))


def test_the_rows_of_a_file_are_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a step is marked as done, which is durable, a power cut must leave all of its files whole."""
    synced: list[int] = []
    replace, fsync = os.replace, os.fsync

    def replaced(source: Path, target: Path) -> None:
        assert synced == [source.stat().st_size], "all bytes were there when it was forced to disk"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", replaced)
    shares.write_rows(tmp_path / "rows.npy", np.arange(1000))
    assert np.load(tmp_path / "rows.npy").tolist() == list(range(1000))
