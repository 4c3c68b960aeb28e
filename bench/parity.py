"""Every combination that is offered, 20 steps against one process.

`python bench/parity.py`: one model on every layout of up to eight processes. What covers every pair of
settings comes first, then one run of each value of NAMED, then what adds most triples a second, so that a
part of the runs says as much as it can.
`python bench/parity.py objectives`: every objective on every model that takes it, on each axis.

Both run what their file in bench/results/ does not hold yet, and may be stopped and started again at any
time; their table in docs/measured/ is written from it. `--write` only writes the table.
"""

# ruff: noqa: E402

import argparse
import heapq
import json
import os
import sys
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OWN = ("bench/objectives", "tests/helpers", "tests/helpers/parity", "")
sys.path[:0] = [str(ROOT / folder) for folder in OWN]
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: eight ranks share few cores
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import objective_parity_report
import parity_report
import torch
from parity_report import Row

import objective_parity
import parity_cases
from common.files import write_atomically
from parity_cases import Combination, covering, groups_of
from ranks import RankFailure, RankPools

SAVE_SECONDS = 20.0
STRETCH = 100


@dataclass(frozen=True)
class Matrix:
    """What is run and where it is written.

    every: the combinations, each with its `world`, its `refusal()` and a name, `str()` of it.
    in_order: sorts those that are offered.
    compare: runs one on a pool; the attributes of what it returns are the figures of a row.
    report: all rows and combinations → the table.
    name: of the files, bench/results/NAME.json and docs/measured/NAME.md.
    """

    every: Sequence[Any]
    in_order: Callable[[list[Any]], list[Any]]
    compare: Callable[[RankPools, Any], Any]
    report: Callable[[dict[str, Row], Sequence[Any]], str]
    name: str

    @property
    def results(self) -> Path:
        return ROOT / f"bench/results/{self.name}.json"

    def offered(self) -> list[Any]:
        return self.in_order([one for one in self.every if not one.refusal()])

    def read(self) -> dict[str, Row]:
        return json.loads(self.results.read_text())["runs"] if self.results.exists() else {}

    def write(self, rows: dict[str, Row]) -> None:
        self.results.parent.mkdir(exist_ok=True)
        runs = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
        offered = sum(not one.refusal() for one in self.every)
        head = f'"torch": {json.dumps(torch.__version__)}, "offered": {offered}'
        write_atomically(self.results, f'{{{head}, "runs": {{\n{runs}\n}}}}\n'.encode())
        table = ROOT / f"docs/measured/{self.name}.md"
        write_atomically(table, self.report(rows, self.every).encode())


def layouts() -> Matrix:
    every = list(parity_cases.combinations())
    return Matrix(every, order, parity_cases.compare, parity_report.report, "parity")


def objectives() -> Matrix:
    return Matrix(
        list(objective_parity.combinations()),
        lambda offered: sorted(offered, key=lambda one: one.world),
        objective_parity.compare,
        objective_parity_report.report,
        "parity-objectives",
    )


def order(offered: list[Combination]) -> list[Combination]:
    """All of them, what tells most first; within a stretch by world, as a pool of ranks takes seconds to
    start.
    """
    pairs = covering(offered)
    ran = {one.named for one in pairs}
    first = pairs + [one for one in named(offered) if one.named not in ran]
    rest = by_gain(offered, first)
    stretches = [
        pairs,
        first[len(pairs) :],
        *(rest[start : start + STRETCH] for start in range(0, len(rest), STRETCH)),
    ]
    return [one for stretch in stretches for one in sorted(stretch, key=lambda one: one.world)]


def named(offered: list[Combination]) -> list[Combination]:
    """One for each value of NAMED: in the smallest world in which its ZeRO stage has something to share."""
    having: dict[tuple[Any, ...], list[Combination]] = defaultdict(list)
    for one in offered:
        having[one.named].append(one)
    chosen = []
    for some in having.values():
        telling = [one for one in some if one.zero == 0 or one.dp_shard * one.cp > 1] or some
        world = min(one.world for one in telling)
        smallest = [one for one in telling if one.world == world]
        # Not always the first: replicas, shards and offloading take turns.
        chosen.append(min(smallest, key=lambda one: zlib.crc32(str(one).encode())))
    return chosen


def by_gain(offered: list[Combination], done: list[Combination]) -> list[Combination]:
    """The others, greedily by how many new triples of settings a second of running brings together."""
    seen = set().union(*(groups_of(one, 3) for one in done))
    triples = {one: groups_of(one, 3) for one in offered if one not in set(done)}
    cost = {1: 1.0, 2: 1.5, 4: 5.0, 8: 10.0}
    gain = {one: len(some) / cost[one.world] for one, some in triples.items()}
    heap = [(-gain[one], str(one), one) for one in triples]
    heapq.heapify(heap)
    chosen = []
    while heap:
        promised, name, one = heapq.heappop(heap)
        now = -len(triples[one] - seen) / cost[one.world]
        if heap and (now, name) > heap[0][:2] and now > promised:  # it promised more before others ran
            heapq.heappush(heap, (now, name, one))
            continue
        chosen.append(one)
        seen |= triples[one]
    return chosen


def measure(matrix: Matrix, ranks: RankPools, one: Any) -> Row:
    try:
        found = matrix.compare(ranks, one)
    except RankFailure as failure:
        cause = failure.__cause__
        if cause is None:  # a rank died or hangs: nothing is known of the combination
            return {"error": str(failure).splitlines()[0], "cause": "rank"}
        return {"error": " ".join(str(cause).split())[:300], "cause": type(cause).__name__}
    except AssertionError as failure:  # ranks that report different runs
        return {"error": str(failure), "cause": "AssertionError"}
    return {name: float(f"{value:.3g}") for name, value in vars(found).items()}


def run(matrix: Matrix, seconds: float, pools: int) -> None:
    """`pools` at a time: eight ranks wait for each other more than they compute."""
    rows = matrix.read()
    done = {name for name, row in rows.items() if "earlier" not in row}
    todo = [one for one in matrix.offered() if str(one) not in done]
    coming = iter(enumerate(todo, start=1))
    begin = saved = time.monotonic()
    lock = threading.Lock()

    def work() -> None:
        nonlocal saved
        ranks, world = RankPools(), 0
        try:
            while time.monotonic() - begin < seconds:
                with lock:
                    number, one = next(coming, (0, None))
                if one is None:
                    break
                if one.world != world:
                    ranks.close()
                    ranks, world = RankPools(), one.world
                row = measure(matrix, ranks, one)
                print(f"{number}/{len(todo)} {time.monotonic() - begin:.0f} s  {one}: {row}", flush=True)
                with lock:
                    rows[str(one)] = row
                    if time.monotonic() - saved > SAVE_SECONDS:
                        matrix.write(rows)
                        saved = time.monotonic()
        finally:
            ranks.close()

    with ThreadPoolExecutor(pools) as threads:
        for done in [threads.submit(work) for _ in range(pools)]:
            done.result()
    matrix.write(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("matrix", nargs="?", default="layouts", choices=("layouts", "objectives"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--pools", type=int, default=1, help="pools of ranks that run at a time")
    parser.add_argument("--write", action="store_true", help="only write the table")
    parser.add_argument("--again", action="store_true", help="run again what failed")
    options = parser.parse_args()
    matrix = layouts() if options.matrix == "layouts" else objectives()
    if options.again:
        matrix.write({name: row for name, row in matrix.read().items() if "error" not in row})
    if options.write:
        matrix.write(matrix.read())
    else:
        run(matrix, options.seconds, options.pools)


if __name__ == "__main__":
    main()
