"""Every combination that is offered and fits eight processes, 20 steps against one process.

`python bench/parity.py` runs what bench/results/parity.json does not hold yet, and may be stopped and started
again at any time; docs/parity.md is written from it. What covers every pair of settings comes first, then one
run of each value of NAMED, then what adds most triples a second, so that a part of the runs says as much as
it can. `--write` only writes the table.
"""

# ruff: noqa: E402

import argparse
import functools
import heapq
import json
import os
import re
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: eight ranks share few cores
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch

from common.files import write_atomically
from parity_cases import (
    BOUNDS,
    Combination,
    Difference,
    combinations,
    compare,
    covering,
    difference,
    groups_of,
)
from ranks import RankFailure, RankPools
from runs import Alone, curve, reference

RESULTS = ROOT / "bench/results/parity.json"
TABLE = ROOT / "docs/parity.md"
SAVE_SECONDS = 20.0
STRETCH = 100

# {"loss", "grad_norm"}: largest relative differences; or {"error"}. "earlier": at which commit, if the engine
# has changed since in what the run shows; it is run again when its turn comes.
Row = dict[str, Any]


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


# -- the table ------------------------------------------------------------------------------------------


def report(rows: dict[str, Row], every: list[Combination]) -> str:
    offered = [one for one in every if not one.refusal()]
    ran = {one: rows[str(one)] for one in offered if str(one) in rows}
    parts = [
        INTRODUCTION,
        *_summary(ran, offered),
        *_groups(ran, offered),
        *_failures(ran),
        *_refusals(every),
    ]
    return "\n".join(parts) + "\n"


INTRODUCTION = """# Parity: every layout against one process

Written by `python bench/parity.py`, from bench/results/parity.json; not by hand. A combination is an engine,
a ZeRO stage, sizes of the five axes (1, 2, 4, 8; at most eight processes), a pipeline schedule, a precision,
recomputation and offloading, as `parallel/layout/layout.py` and the config name them; those that `resolve`
and its checks accept are offered. Each trains a small decoder, of a layer a pipeline stage and at least two,
for 20 steps on CPU, with AdamW, clipping, unevenly masked targets and at least two micro-batches (four in a
pipeline of up to four processes; as many as stages a rank, or as DualPipeV asks for, in a longer one), and
every step's loss and gradient norm is compared with one process **in fp32**. Sizes of the data axes and
offloading
multiply what says something of its own: engine, ZeRO stage, tp, pp, schedule, cp, precision and recomputation
are the settings *named* below, and each of their values in common is run once before the rest, in the
smallest world in which its ZeRO stage has something to share. `tests/equivalence/test_parity.py` runs a part
of all each time, in which every pair of settings meets.

The bounds, relative: **fp32 1e-5**: sums in another order differ by 6e-8 each, and training multiplies that.
**bf16 2e-2**: a weight keeps 8 bits, so it is off by up to 2e-3, and an activation again at every operator;
the norm over all gradients stays within a few of those. **fp16 5e-3**: 11 bits, an eighth of that. Neither
says how training grows a difference: with 8 or 16 layers the learning rate is a third of the others'. At that
the gradient norm of 16 layers went from 1.0 to 1.4 in ten steps, and **one process** in bf16 from 3e-4 off in
the first step to 1e-2 there, in fp16 from 2e-5 to 7e-3; at a third it stays below 3e-3 and 6e-4.
"""


def _summary(ran: dict[Combination, Row], offered: list[Combination]) -> list[str]:
    good = [one for one, row in ran.items() if "error" not in row]
    names = len({one.named for one in ran}), len({one.named for one in offered})
    lines = [
        f"**{names[0]} of {names[1]} values of the named settings together have been run**, in {len(ran)} of "
        f"{len(offered)} offered combinations; in them, {_share(ran, offered, 2):.1%} of all pairs and "
        f"{_share(ran, offered, 3):.1%} of all triples of settings met. {len(good)} trained, "
        f"{len(ran) - len(good)} did not. {_earlier(ran)}",
        "",
        "| precision | run | worst loss | worst gradient norm | bound | above it |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for precision, bound in BOUNDS.items():
        mine = [ran[one] for one in good if one.precision == precision]
        above = sum(max(row["loss"], row["grad_norm"]) > bound for row in mine)
        lines.append(f"| {precision} | {len(mine)} | {_worst(mine)} | {bound:.0e} | {above} |")
    return [*lines, ""]


def _earlier(ran: dict[Combination, Row]) -> str:
    commits = Counter(row["earlier"] for row in ran.values() if "earlier" in row)
    parts = [f"{count} ran at commit {name}, and not again" for name, count in commits.items()]
    return " ".join(f"{part} since gradients are reduced beside backward on a CPU." for part in parts)


def _share(ran: Iterable[Combination], offered: Iterable[Combination], size: int) -> float:
    """Which share of all groups of `size` settings that are offered together has been run."""
    done, whole = (set().union(*(groups_of(one, size) for one in some)) for some in (ran, offered))
    return len(done) / len(whole)


def _worst(rows: list[Row]) -> str:
    if not rows:
        return "– | –"
    return f"{max(row['loss'] for row in rows):.1e} | {max(row['grad_norm'] for row in rows):.1e}"


GROUPS: dict[str, Callable[[Combination], str]] = {
    "engine": lambda one: one.engine,
    "ZeRO": lambda one: f"{one.engine} zero={one.zero}",
    "parallel axes": lambda one: (
        "×".join(
            name
            for name in ("dp", "cp", "tp", "pp")
            if (_data(one) if name == "dp" else getattr(one, name)) > 1
        )
        or "one process"
    ),
    "schedule": lambda one: one.schedule if one.pp > 1 else "",
    "recompute": lambda one: one.recompute,
    "offload": lambda one: one.offload if one.engine == "deepspeed" else "",
    "processes": lambda one: str(one.world),
}


def _data(one: Combination) -> int:
    return one.dp_replicate * one.dp_shard


def _groups(ran: dict[Combination, Row], offered: list[Combination]) -> list[str]:
    lines = [
        "## By setting",
        "",
        "Worst loss / gradient norm of all runs with the setting.",
        "",
        "| | setting | run / offered | fp32 | bf16 | fp16 | failed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for title, of in GROUPS.items():
        whole = Counter(of(one) for one in offered)
        mine: dict[str, dict[Combination, Row]] = defaultdict(dict)
        for one, row in ran.items():
            mine[of(one)][one] = row
        for value in sorted(filter(None, whole)):
            cells = [
                _worst([r for one, r in mine[value].items() if one.precision == p and "error" not in r])
                for p in BOUNDS
            ]
            worst = " | ".join(cell.replace(" | ", " / ") for cell in cells)
            failed = sum("error" in row for row in mine[value].values())
            lines.append(
                f"| {title} | {value} | {len(mine[value])} / {whole[value]} | {worst} | {failed or ''} |"
            )
    return [*lines, ""]


def _failures(ran: dict[Combination, Row]) -> list[str]:
    found: dict[str, list[Combination]] = defaultdict(list)
    for one, row in ran.items():
        if "error" in row:
            found[f"{row['cause']}: {row['error']}"].append(one)
        elif max(row["loss"], row["grad_norm"]) > BOUNDS[one.precision]:
            found[_above(one)].append(one)
    if not found:
        return []
    lines = [
        "## What failed, or is above its bound",
        "",
        "| runs | for example | with |",
        "| --- | --- | --- |",
    ]
    for message, some in sorted(found.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {len(some)} | `{min(map(str, some), key=len)}` | {message.replace('|', '/')} |")
    return [*lines, ""]


@functools.cache
def _alone(one: Combination) -> tuple[int, Difference]:
    """Layers, and how far one process is from fp32 by itself in the same precision and micro-batches."""
    case = replace(one.case(), parallel={})
    return case.model["layers"], difference(curve(Alone(), case), reference(case))


def _above(one: Combination) -> str:
    """Whether it is the precision or the layout that is above the bound."""
    layers, alone = _alone(Combination(pp=one.pp, schedule=one.schedule, precision=one.precision))
    return (
        f"above {BOUNDS[one.precision]:.0e}. **One process in {one.precision}**, with the {layers} layers "
        f"that this needs, is itself {alone.loss:.1e} (loss) and {alone.grad_norm:.1e} from fp32"
    )


def _refusals(every: list[Combination]) -> list[str]:
    found: dict[str, list[tuple[Combination, str]]] = defaultdict(list)
    for one in every:
        if message := one.refusal():
            found[re.sub(r"=\w+", "=", message)].append((one, message))
    lines = ["## What is refused", "", "| combinations | for example | with |", "| --- | --- | --- |"]
    for _, some in sorted(found.items(), key=lambda item: -len(item[1])):
        one, message = min(some, key=lambda pair: len(str(pair[0])))
        lines.append(f"| {len(some)} | `{one}` | {message} |")
    return lines


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
