"""The table of docs/measured/parity.md, from the rows that `bench/parity.py` has measured."""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from parity_cases import BOUNDS, Combination, Difference, difference, groups_of
from runs import Alone, curve, reference

# {"loss", "grad_norm"}: largest relative differences; or {"error"}. "earlier": at which commit, if the engine
# has changed since in what the run shows; it is run again when its turn comes.
Row = dict[str, Any]


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

Written by `python bench/parity.py`, from bench/results/parity.json; not by hand. A combination is an
engine, a ZeRO stage, sizes of the five axes (1, 2, 4, 8; at most eight processes), a pipeline schedule, a
precision, recomputation and offloading, as `parallel/layout/layout.py` and the config name them; those that
`resolve` and its checks accept are offered. Each trains a small decoder, of a layer a pipeline stage and at
least two, for 20 steps on CPU, with AdamW, clipping, unevenly masked targets and at least two micro-batches
(four in a pipeline of up to four processes; as many as stages a rank, or as DualPipeV asks for, in a longer
one), and every step's loss and gradient norm is compared with one process **in fp32**. Sizes of the data
axes and offloading multiply what says something of its own: engine, ZeRO stage, tp, pp, schedule, cp,
precision and recomputation are the settings *named* below, and each of their values in common is run once
before the rest, in the smallest world in which its ZeRO stage has something to share.
`tests/equivalence/test_parity.py` runs a part of all in which every pair of settings meets: half of it in
`make test`, the rest in `make slow`.

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
