"""Which parameters of a model are taken from a source, and which are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from common.model_plan import ModelPlan
from trainer.first_weights.source import WeightSource
from trainer.models.tuned.plan import is_added

Shapes = Mapping[str, tuple[int, ...]]

_VOCABULARY = ("vocab_embedding", "vocab_head")
# As a model of texts by classes has BERT's pooler, and as one that predicts next sentences does.
_POOLER, _TRAINED_POOLER = "head.transform.dense", "next_sentence.pooler"


@dataclass(frozen=True)
class Match:
    """What becomes of each parameter, by name.

    taken: those that the source has.
    enlarged: of these, the ones with more rows than there: name → rows of the source. The others are drawn.
    drawn: of a head that the source has not, or in another size.
    dropped: of the source, where the model has none of that name, or draws it.
    renamed: of those taken, the ones that the source has under another name: name → name there.
    """

    taken: frozenset[str]
    enlarged: Mapping[str, int]
    drawn: tuple[str, ...]
    dropped: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def in_words(self) -> str:
        """Return what was not simply taken, for an event; "" where everything was."""
        parts = []
        if self.enlarged:
            rows = ", ".join(f"{name} behind row {rows}" for name, rows in sorted(self.enlarged.items()))
            parts.append(f"enlarged, with new rows drawn: {rows}")
        if self.renamed:
            pairs = ", ".join(f"{ours} from {theirs}" for ours, theirs in sorted(self.renamed.items()))
            parts.append(f"taken under another name: {pairs}")
        for what, names in (("drawn", self.drawn), ("not taken", self.dropped)):
            if names:
                parts.append(f"{what}: {_shown(names)}")
        return "; ".join(parts)


def match(ours: Shapes, source: WeightSource, plan: ModelPlan, *, another_task: bool = False) -> Match:
    """Decide what becomes of each parameter.

    ours: name → shape of all parameters of the model, of all ranks.
    plan: the model's. What belongs to its task, and the source has not, or in another size, is drawn whole.
        So is what fine-tuning adds.
    another_task: the source was trained for another task: all that comes behind the blocks, but norms,
        belongs to the task.

    RuntimeError, one line, where another parameter is missing in the source or has another shape there.
    """
    theirs = source.parameters
    rows = {
        name: theirs[name][0]
        for name in _growing(plan, ours)
        if name in theirs and _grows(ours, theirs, name)
    }
    fits = {name for name, shape in ours.items() if theirs.get(name) == shape or name in rows}
    drawn = {name for name in ours.keys() - fits if is_added(name)}
    for head in {*plan.task, *(_heads(plan) if another_task else ())}:
        inside = {name for name in ours if name.startswith(f"{head}.")} - _aliases(plan)
        if not inside <= fits:
            drawn |= inside
    if wrong := sorted(ours.keys() - fits - drawn):
        raise RuntimeError(_wrong(wrong[0], ours, source))
    taken = fits - drawn
    dropped = (*sorted(theirs.keys() - taken), *source.besides)
    kept = {name: count for name, count in rows.items() if name in taken}
    return Match(frozenset(taken), kept, tuple(sorted(drawn)), dropped)


def with_pooler(found: Match, ours: Shapes, source: WeightSource) -> Match:
    """Return `found` for a model whose head begins with BERT's pooler, which is taken from a source that has
    one, where it would be drawn.
    """
    names = {f"{_POOLER}.{kind}": f"{_TRAINED_POOLER}.{kind}" for kind in ("weight", "bias")}
    if not set(found.drawn) >= names.keys() or any(
        source.parameters.get(theirs) != ours[name] for name, theirs in names.items()
    ):
        return found
    return replace(
        found,
        taken=found.taken | names.keys(),
        drawn=tuple(name for name in found.drawn if name not in names),
        dropped=tuple(name for name in found.dropped if name not in names.values()),
        renamed=names,
    )


def _growing(plan: ModelPlan, ours: Shapes) -> set[str]:
    """Return the parameters with a row for each token of the vocabulary."""
    modules = {name for name, style in plan.tensor if style in _VOCABULARY}
    return {name for name in ours if name.rpartition(".")[0] in modules}


def _grows(ours: Shapes, theirs: Shapes, name: str) -> bool:
    mine, other = ours[name], theirs[name]
    return len(mine) == len(other) and mine[1:] == other[1:] and mine[0] > other[0]


def _heads(plan: ModelPlan) -> list[str]:
    return [name for name in plan.last if name.rpartition(".")[2] != "norm"]


def _aliases(plan: ModelPlan) -> set[str]:
    return {alias for _, alias in plan.tied}


def _wrong(name: str, ours: Shapes, source: WeightSource) -> str:
    if name in source.parameters:
        return (
            f"{source.where}: parameter {name} is {list(source.parameters[name])} there, and "
            f"{list(ours[name])} in this model: model.init_from needs a model of the same sizes"
        )
    return (
        f"{source.where}: holds no parameter {name}, which this model has: only layers of a task may be "
        "missing"
    )


def _shown(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
