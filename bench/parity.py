"""Every combination that is offered and fits eight processes, 20 steps against one process.

`python bench/parity.py` runs what bench/results/parity.json does not hold yet, and may be stopped and started
again at any time; docs/measured/parity.md is written from it. What covers every pair of settings comes first,
then one run of each value of NAMED, then what adds most triples a second, so that a part of the runs says as
much as it can. `--write` only writes the table.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT)]
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: eight ranks share few cores
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
from parity_report import Row, report

from common.files import write_atomically
from parity_cases import (
    Combination,
    combinations,
    compare,
    covering,
    groups_of,
)
from ranks import RankFailure, RankPools

RESULTS = ROOT / "bench/results/parity.json"
TABLE = ROOT / "docs/measured/parity.md"
SAVE_SECONDS = 20.0
STRETCH = 100


def read() -> dict[str, Row]:
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}


def write(rows: dict[str, Row], every: list[Combination]) -> None:
    offered = [one for one in every if not one.refusal()]
    RESULTS.parent.mkdir(exist_ok=True)
    runs = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    head = f'"torch": {json.dumps(torch.__version__)}, "offered": {len(offered)}'
    write_atomically(RESULTS, f'{{{head}, "runs": {{\n{runs}\n}}}}\n'.encode())
    write_atomically(TABLE, report(rows, every).encode())


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


def measure(ranks: RankPools, one: Combination) -> Row:
    try:
        found = compare(ranks, one)
    except RankFailure as failure:
        cause = failure.__cause__
        if cause is None:  # a rank died or hangs: nothing is known of the combination
            return {"error": str(failure).splitlines()[0], "cause": "rank"}
        return {"error": " ".join(str(cause).split())[:300], "cause": type(cause).__name__}
    return {"loss": float(f"{found.loss:.3g}"), "grad_norm": float(f"{found.grad_norm:.3g}")}


def run(every: list[Combination], seconds: float, pools: int) -> None:
    """`pools` at a time: eight ranks wait for each other more than they compute."""
    rows = read()
    done = {name for name, row in rows.items() if "earlier" not in row}
    todo = [one for one in order([one for one in every if not one.refusal()]) if str(one) not in done]
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
                row = measure(ranks, one)
                print(f"{number}/{len(todo)} {time.monotonic() - begin:.0f} s  {one}: {row}", flush=True)
                with lock:
                    rows[str(one)] = row
                    if time.monotonic() - saved > SAVE_SECONDS:
                        write(rows, every)
                        saved = time.monotonic()
        finally:
            ranks.close()

    with ThreadPoolExecutor(pools) as threads:
        for done in [threads.submit(work) for _ in range(pools)]:
            done.result()
    write(rows, every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--pools", type=int, default=1, help="pools of ranks that run at a time")
    parser.add_argument("--write", action="store_true", help="only write the table")
    parser.add_argument("--again", action="store_true", help="run again what failed")
    options = parser.parse_args()
    every = list(combinations())
    if options.again:
        write({name: row for name, row in read().items() if "error" not in row}, every)
    if options.write:
        write(read(), every)
    else:
        run(every, options.seconds, options.pools)


if __name__ == "__main__":
    main()
