"""The table of docs/measured/parity-objectives.md, from the rows that `bench/parity.py objectives` has
measured.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

from parity_report import Row

from objective_cases import CASES
from objective_parity import BOUND, LAYOUTS, Combination, kinds, offered_pairs, refused_pair

FIGURES = ("loss", "grad_norm", "evaluation", "weights")


def report(rows: dict[str, Row], every: Sequence[Combination]) -> str:
    ran = {one: rows[str(one)] for one in every if str(one) in rows and not one.refusal()}
    offered = sum(not one.refusal() for one in every)
    parts = [
        INTRODUCTION,
        *_summary(ran, offered),
        *_by_layout(ran),
        *_failures(ran),
        *_refused_layouts(every),
        *_refused_pairs(),
    ]
    return "\n".join(parts) + "\n"


INTRODUCTION = """# Parity: every objective and model against one process

Written by `python bench/parity.py objectives`, from bench/results/parity-objectives.json; not by hand.
[parity.md](parity.md) has one model on every layout of up to eight processes; here is every objective on
every model that takes it, the two models of [docs/examples](../examples/own_model.md) included, on each axis
and on pairs of axes. Each trains for 20 steps in fp32 on CPU, with AdamW, clipping and two micro-batches
(four in a pipeline), on rows of uneven length of which some are empty. Figures are the largest relative
difference from one process:

* loss, gradient norm: of any step;
* evaluation: of held-out loss, count, accuracy or recall after the last step;
* weights: ‖a - b‖ / ‖b‖ of all weights at the end, without those on which the loss does not depend: the
  biases of attention's keys, and those of the scores of an answer's places. Their gradients are roundings,
  which Adam makes whole steps of.

The bound of all of them is 1e-5. `tests/equivalence/objectives/test_objective_parity.py` runs a part in
`make test` in which each case and each layout occurs, and all in `make slow`.
"""


def _worst(rows: Sequence[Row], figures: Sequence[str] = FIGURES) -> str:
    good = [row for row in rows if "error" not in row]
    return f"{max(row[figure] for row in good for figure in figures):.1e}" if good else "–"


def _summary(ran: dict[Combination, Row], offered: int) -> list[str]:
    good = {one: row for one, row in ran.items() if "error" not in row}
    above = sum(max(row[figure] for figure in FIGURES) > BOUND for row in good.values())
    lines = [
        f"**{len(ran)} of {offered} offered combinations have been run**: {len(good)} trained, of which "
        f"{above} are above the bound; {len(ran) - len(good)} did not.",
        "",
        "| objective, model | runs | loss | gradient norm | evaluation | weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        mine = [row for one, row in ran.items() if one.case == case]
        cells = " | ".join(_worst(mine, (figure,)) for figure in FIGURES)
        lines.append(f"| {case} | {len(mine)} | {cells} |")
    cells = " | ".join(_worst(list(ran.values()), (figure,)) for figure in FIGURES)
    return [*lines, f"| **all** | {len(ran)} | {cells} |", ""]


# Layouts that share a column.
GROUPS: dict[str, Callable[[str], bool]] = {
    "dp2, ZeRO 0–3": lambda name: name.startswith("dp2, ZeRO"),
    **{name: name.__eq__ for name, layout in LAYOUTS.items() if "zero" not in layout.parallel},
    "dp2×tp2": "dp2×tp2".__eq__,
    "dp2×pp2 ZBV, ZeRO 3": "dp2×pp2 ZBV, ZeRO 3".__eq__,
    "DeepSpeed, dp2, ZeRO 0–3": lambda name: name.startswith("DeepSpeed"),
}


def _by_layout(ran: dict[Combination, Row]) -> list[str]:
    lines = [
        "## By layout",
        "",
        "The worst of the four figures. –: refused, see below.",
        "",
        f"| | {' | '.join(GROUPS)} |",
        f"| --- |{' --- |' * len(GROUPS)}",
    ]
    for case in CASES:
        cells = [
            _worst([row for one, row in ran.items() if one.case == case and within(one.layout)])
            for within in GROUPS.values()
        ]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return [*lines, ""]


def _failures(ran: dict[Combination, Row]) -> list[str]:
    lines = []
    for one, row in ran.items():
        if "error" in row:
            message = f"{row['cause']}: {row['error']}".replace("|", "/")
            lines.append(f"| {one} | {message} |")
        elif max(row[figure] for figure in FIGURES) > BOUND:
            lines.append(f"| {one} | {', '.join(f'{name} {row[name]:.1e}' for name in FIGURES)} |")
    if not lines:
        return []
    return ["## What failed, or is above its bound", "", "| run | with |", "| --- | --- |", *lines, ""]


def _refused_layouts(every: Sequence[Combination]) -> list[str]:
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in every:
        if message := one.refusal():
            found[message][one.case].append(one.layout)
    lines = [
        "## Layouts that are refused",
        "",
        "By one line, before any rank starts.",
        "",
        "| objective, model | on | with |",
        "| --- | --- | --- |",
    ]
    for message, cases in found.items():
        layouts = dict.fromkeys(layout for some in cases.values() for layout in some)
        lines.append(f"| {'; '.join(cases)} | {', '.join(layouts)} | {message} |")
    return [*lines, ""]


def _refused_pairs() -> list[str]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    objectives, models = kinds()
    for objective in objectives:
        for model in models:
            if (objective, model) not in offered_pairs():
                message = refused_pair(objective, model).replace(f"model.kind={model}", "model.kind=…")
                found[objective, message].append(model.partition(".")[0])
    lines = [
        "## Models that an objective does not take",
        "",
        "| objective | model | with |",
        "| --- | --- | --- |",
    ]
    return [*lines, *(f"| {one} | {', '.join(some)} | {said} |" for (one, said), some in found.items())]
