"""The command's own process in `prepare` of many units: processor time by step, and memory.

`python bench/scale/preparing.py`: 310, 3,100 and 31,000 units. Cases:

plain      read and tokenise
classes    the same, and every document has one of 1,000 classes
near       without near duplicates: a survey of all units before, and the search
ray        nothing but handing out so many tasks without work to a Ray of two processes, which is what an
           engine adds to the others
wide       the same with 2,000 tasks handed out at a time, as on a cluster of 1,000 cores

In the first three the work on a unit is stood in for: its files are hard links to those of one unit, and its
record is written as the unit's own attempt would. A unit is a shard of 32,258 documents, so the largest
corpus has 10⁹, and the merge reads, checks and counts their indexes, 1 MB each; sources are files of 1 KiB.
Seconds are the CPU's of this process, all threads, without those of the work that is stood in for; those of a
step are without the ones of the steps in it. Memory is the most anonymous memory of the process, sampled
fifty times a second, and what of it came after the command began; imports of the data card's pictures are in
it.

Writes bench/results/scale/preparing.json.
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.corpus.columns import CLASS
from data.corpus.shards import TokenShardWriter
from data.prepare import finish as ending
from data.prepare import prepare as command
from data.prepare.cleaning.dedup import bands
from data.prepare.duplicates import shares
from data.prepare.encode import encode_unit
from data.prepare.engines import on_ray
from data.prepare.preparation import HELDOUT, TRAIN, Preparation
from data.prepare.recipe import Recipe
from data.prepare.report.composition import Profile
from data.prepare.survey import survey_unit
from data.prepare.tally import Tally
from data.prepare.units import Advance, Run, Task, TaskFunction, Unit

RESULTS = Path(__file__).parents[1] / "results" / "scale" / "preparing.json"
UNITS = (310, 3_100, 31_000)
UNIT_BYTES, DOCUMENTS, CLASSES = 1024, 32_258, 1000
CASES = {
    "plain": Recipe(shard_bytes=UNIT_BYTES),
    "classes": Recipe(shard_bytes=UNIT_BYTES),
    "near": Recipe(shard_bytes=UNIT_BYTES, deduplicate="near"),
}
AT_A_TIME = {"ray": 4, "wide": 2_000}
# Functions that are counted each by itself, and where they are looked for.
STEPS: dict[str, Any] = {
    "expand": command.inputs,
    "cut_into_units": command,
    "clear_drafts": command,
    "find": command,
    "check_unchanged": command,
    "finish": command,
    "_segments": ending,
    "_place": ending,
    "write_datacard": ending,
    "close_corpus": ending,
    "_clear": command,
    "report_of": command,
}
STOOD_IN = "stood in for"
_SAMPLE_SECONDS = 0.02


class Seconds:
    """CPU seconds of this process by step; a step's are not counted for the one that it is called from."""

    def __init__(self) -> None:
        self.of: dict[str, float] = defaultdict(float)
        self._steps, self._since = ["all else"], time.process_time()

    @contextmanager
    def during(self, step: str) -> Iterator[None]:
        """Count the `with` block for a step."""
        self._note()
        self._steps.append(step)
        try:
            yield
        finally:
            self._note()
            self._steps.pop()

    def _note(self) -> None:
        now = time.process_time()
        self.of[self._steps[-1]] += now - self._since
        self._since = now

    def counted(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls count for a step; of one that yields, each draw."""

        @functools.wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            with self.during(step):
                made = function(*given, **named)
            return self._drawn(step, made) if isinstance(made, Iterator) else made

        return call

    def _drawn(self, step: str, made: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.during(step):
                each = next(made, None)
            if each is None:
                return
            yield each


class Memory(threading.Thread):
    """Samples the anonymous memory of this process, in MB: the first, and the most so far."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.most = self.now()

    def now(self) -> float:
        """Anonymous memory."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            self.most = max(self.most, self.now())
            time.sleep(_SAMPLE_SECONDS)


class StandIn:
    """An engine whose tasks write what the work on a unit would: links to files of one unit, in `folder`."""

    def __init__(self, folder: Path, case: str) -> None:
        self._folder = folder
        rng = np.random.default_rng(0)
        writer = TokenShardWriter(folder / "unit.tar", np.dtype("<u2"))
        profile, tally = Profile(), Tally()
        for number in range(DOCUMENTS):
            origin = {"source": "texts", "path": f"{number}.txt"}
            if case == "classes":
                origin[CLASS] = f"class {number % CLASSES:04d}"
            writer.add(f"{number:08d}", rng.integers(0, 256, 8), 8, origin, {})
            profile.add(origin, 8, 8)
            tally.add("read", 8)
        self._entry = writer.close()
        self._segment: dict[str, Any] = {
            "next": -1,
            "columns": {TRAIN: asdict(writer.columns)},
            "classes": {TRAIN: writer.class_numbers},
            "profiles": {TRAIN: profile.as_dict(), HELDOUT: Profile().as_dict()},
            "tally": tally.as_dict(),
        }
        width = math.prod(bands(Recipe().near_threshold))
        rng.integers(1, 1 << 62, (1, 3)).tofile(folder / shares.CONTENT)
        rng.integers(1, 1 << 32, (1, width), dtype=np.uint32).tofile(folder / shares.SIGNATURES)

    def run(self, function: TaskFunction, preparation: Any, tasks: Sequence[Task], advance: Advance) -> None:
        """Do the tasks here, one after the other."""
        for task in tasks:
            if function is encode_unit:
                self._encode(preparation, task)
            elif function is survey_unit:
                self._survey(preparation, task)
            else:
                function(preparation, task, advance)

    def _encode(self, preparation: Preparation, unit: Any) -> None:
        entry = replace(self._entry, file=f"{unit.number:06d}-0000.{TRAIN}.tar")
        record = preparation.record(unit, "units")
        for one, other in ((self._entry.file, entry.file), (self._entry.index_file, entry.index_file)):
            os.link(self._folder / one, record.with_name(other))
        record.write_text(json.dumps({"segments": [{**self._segment, "shards": {TRAIN: asdict(entry)}}]}))

    def _survey(self, preparation: Preparation, unit: Any) -> None:
        record = preparation.record(unit, "survey")
        for name in (shares.CONTENT, shares.SIGNATURES):
            os.link(self._folder / name, record.with_suffix(f".{name}"))
        record.write_text(json.dumps({"tally": self._segment["tally"], "documents": 1}))


def write_sources(folder: Path, units: int) -> None:
    """Write a file of one text for each unit, a thousand in a folder."""
    for number in range(units):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.txt"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"text " * (UNIT_BYTES // 5))


def prepared(case: str, folder: Path, units: int) -> tuple[Seconds, Memory]:
    """Prepare a corpus of so many units."""
    write_sources(folder / "sources", units)
    (folder / "unit").mkdir()
    stand_in = StandIn(folder / "unit", case)
    seconds, memory = Seconds(), Memory()

    @contextmanager
    def started(*_: object) -> Iterator[Run]:
        def run(*given: Any) -> None:
            with seconds.during(STOOD_IN):
                stand_in.run(*given)

        yield run

    for name, module in STEPS.items():
        setattr(module, name, seconds.counted(name.strip("_"), getattr(module, name)))
    command.started = started  # type: ignore[assignment]
    memory.start()
    given: dict[str, Any] = {"tokenizer": "bytes", "recipe": CASES[case], "progress": False}
    report = command.prepare([str(folder / "sources")], folder / "out", **given)
    assert report.train.shards == units
    return seconds, memory


def handed_out(at_a_time: int, folder: Path, units: int) -> tuple[Seconds, Memory]:
    """Run so many tasks without work on Ray; return the seconds of handing them out, and the memory."""
    tasks = [Unit(number, ()) for number in range(units)]
    with on_ray.connected("ray", 2, folder) as run:
        run(nothing, None, tasks[:2], int)  # the processes are there now
        seconds, memory = Seconds(), Memory()
        memory.start()
        with seconds.during("handing out"):
            run.func(at_a_time, *run.args[1:], nothing, None, tasks, int)  # type: ignore[attr-defined]
    return seconds, memory


def nothing(preparation: Any, task: Any, advance: Advance) -> None:
    """A task without work."""


def in_child(case: str, units: int, folder: Path) -> None:
    """Print the figures of one case at one size."""
    if case in CASES:
        seconds, memory = prepared(case, folder, units)
    else:
        seconds, memory = handed_out(AT_A_TIME[case], folder, units)
    by_step = {step: round(value, 3) for step, value in sorted(seconds.of.items()) if step != STOOD_IN}
    found = {"cpu_seconds": round(sum(by_step.values()), 2), "most_megabytes": round(memory.most, 1)}
    found["grown_megabytes"] = round(memory.most - memory.first, 1)
    print(json.dumps({**found, "cpu_seconds_by_step": by_step}))


def exponents(found: dict[int, dict[str, Any]]) -> dict[str, float]:
    """The slope of log seconds over log units between the two largest sizes, of steps of half a second."""
    less, most = sorted(found)[-2:]
    steps = {units: one["cpu_seconds_by_step"] | {"all": one["cpu_seconds"]} for units, one in found.items()}
    return {
        step: round(math.log(value / max(steps[less].get(step, 0), 1e-3)) / math.log(most / less), 2)
        for step, value in steps[most].items()
        if value >= 0.5
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, nargs="+", default=UNITS)
    parser.add_argument("--cases", nargs="+", default=[*CASES, *AT_A_TIME])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        in_child(args.child[0], int(args.child[1]), Path(args.child[2]))
        return
    results = json.loads(args.results.read_bytes()) if args.results.exists() else {}
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    for case in args.cases:
        found: dict[int, dict[str, Any]] = {}
        for units in args.units:
            with tempfile.TemporaryDirectory(prefix="scale-preparing-") as scratch:
                own = [sys.executable, __file__, "--child", case, str(units), scratch]
                ran = subprocess.run(own, check=True, stdout=subprocess.PIPE, env=environment)
            found[units] = json.loads(ran.stdout)
            print(case, units, json.dumps(found[units]), flush=True)
        results[case] = {"units": {str(units): figures for units, figures in found.items()}}
        results[case]["exponents"] = exponents(found) if len(found) > 1 else {}
        args.results.write_text(json.dumps(results, indent=1) + "\n")
        print(case, json.dumps(results[case]["exponents"]), flush=True)


if __name__ == "__main__":
    main()
