"""Memory of `prepare` by process at three sizes, up to 100 times the documents: it may not grow with them.

    python bench/preparing/held_documents.py

"prepare" is a whole `prepare --deduplicate near` of short rows, 300, 3,000 and 30,000, in units of 16 KiB;
"search" the search for near duplicates alone, among 10,000, 100,000 and 1,000,000 documents with signatures
that are made up, of which a fifth are near copies of earlier ones. Both with two processes. The
command's own process and the largest worker are shown: the most anonymous memory that either had, sampled 50
times a second, and what the command's process has grown by from the first sample, imports and the data card's
pictures included. Writes bench/results/preparing/held_documents.json.
"""

import argparse
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from data.prepare.cleaning.dedup import bands
from data.prepare.duplicates import shares, verdicts
from data.prepare.duplicates.find import find
from data.prepare.engines.chosen import started
from data.prepare.preparation import Preparation, write_json
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.units import Unit

RESULTS = Path(__file__).parents[1] / "results" / "preparing" / "held_documents.json"
SIZES = {"search": (10_000, 100_000, 1_000_000), "prepare": (300, 3_000, 30_000)}
_UNIT_DOCUMENTS = 16_384
_SAMPLE_SECONDS = 0.02


class Sampler(threading.Thread):
    """Samples the anonymous memory of this process and of all its descendants, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.own = anonymous(os.getpid())
        self.worker = 0.0

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            self.own = max(self.own, anonymous(os.getpid()))
            self.worker = max([self.worker, *map(anonymous, descendants(os.getpid()))])
            time.sleep(_SAMPLE_SECONDS)


def anonymous(pid: int) -> float:
    """Anonymous memory of a process in MB; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def descendants(pid: int) -> list[int]:
    """The processes below one."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = list(map(int, path.read_text().split()))
        except OSError:
            continue
        found += [each for child in children for each in (child, *descendants(child))]
    return found


def write_rows(path: Path, documents: int) -> None:
    """Rows of some 400 bytes; a fifth are near copies of earlier ones."""
    rng, earlier = random.Random(0), [""]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(documents):
            words = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(60)]
            text = " ".join(words) if rng.random() < 0.8 else rng.choice(earlier) + " more"
            if len(earlier) < 1000:
                earlier.append(text)
            file.write(json.dumps({"text": text}) + "\n")


def write_survey(scratch: Path, documents: int) -> tuple[Preparation, list[Unit]]:
    """The files of a survey, with contents and signatures that are made up."""
    preparation = Preparation(scratch, Recipe(deduplicate="near"), 0.0, True)
    width = int(np.prod(bands(preparation.recipe.near_threshold)))
    rng = np.random.default_rng(0)
    earlier = rng.integers(1, 1 << 32, (100, width), dtype=np.uint32)
    (scratch / "survey").mkdir(parents=True)
    units = [Unit(number, ()) for number in range(-(-documents // _UNIT_DOCUMENTS))]
    for unit in units:
        count = min(_UNIT_DOCUMENTS, documents - unit.number * _UNIT_DOCUMENTS)
        record = preparation.record(unit, "survey")
        signatures = rng.integers(1, 1 << 32, (count, width), dtype=np.uint32)
        near = np.flatnonzero(rng.random(count) < 0.2)
        signatures[near, 6:] = earlier[rng.integers(100, size=len(near)), 6:]
        signatures.tofile(record.with_suffix(f".{shares.SIGNATURES}"))
        contents = rng.integers(0, 1 << 63, (count, 3), dtype=np.uint64)
        contents[:, shares.SIZE] = 1
        contents.tofile(record.with_suffix(f".{shares.CONTENT}"))
        write_json(record, {"documents": count})
    return preparation, units


def in_child(what: str, documents: int, folder: Path) -> None:
    """Print the memory of the command's process, first and most, of the largest worker, and CPU seconds."""
    if what == "prepare":
        write_rows(folder / "rows.jsonl", documents)
        recipe = Recipe(deduplicate="near", shard_bytes=16 << 10)
        work = functools.partial(
            prepare, [str(folder / "rows.jsonl")], folder / "out", tokenizer="bytes", workers=2, recipe=recipe
        )
        sampler = Sampler()
        sampler.start()
        work(progress=False)
    else:
        preparation, units = write_survey(folder / "out", documents)
        sampler = Sampler()
        sampler.start()
        with started("local", 2, 2, preparation.scratch) as run:
            find(preparation, units, run)
        assert verdicts.found(preparation)["counts"]["removed.near_duplicate"][0] > documents / 6
    print(round(sampler.first), round(sampler.own), round(sampler.worker), round(sum(os.times()[:4])))


def main() -> None:
    """Print the memory at both sizes as JSON, and store it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        in_child(args.child[0], int(args.child[1]), Path(args.child[2]))
        return
    report: dict[str, dict[str, dict[str, int]]] = {}
    for what, sizes in SIZES.items():
        report[what] = {}
        for documents in sizes:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--child", what, str(documents), folder]
                ran = subprocess.run(command, check=True, capture_output=True, text=True)
            first, own, worker, seconds = map(int, ran.stdout.split())
            found = {"command_megabytes": own, "of_which_grown": own - first, "worker_megabytes": worker}
            report[what][f"{documents:,} documents"] = {**found, "cpu_seconds": seconds}
            print(what, documents, report[what][f"{documents:,} documents"], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
