"""What is read of single rows is the same on every layout, and is the arithmetic of float64."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from deepspeed_cases import OFFLOADED, engine_of
from parallel.config import ParallelConfig
from parallel.engine import Engine
from parallel.layout.layout import resolve
from runs import SEQ, VOCAB, Alone, Case, build, micro_batches, model_of, state_of
from trainer.evaluation.scoring import Score, Scorer
from trainer.models.decoder.decoder import Decoder

MODEL = {"window": 7, "global_every": 2}


def requests() -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations of many lengths; the longest does not fit into a row."""
    draw = torch.Generator().manual_seed(3)

    def ids(count: int) -> list[int]:
        return torch.randint(VOCAB, (count,), generator=draw).tolist()

    return [(ids(1 + 5 * n % 13), ids(1 + 7 * n % 11)) for n in range(21)] + [(ids(SEQ), ids(4))]


def scored(context: Any, parallel: dict[str, Any]) -> list[Score]:
    return scores_of(
        build(Case(parallel=parallel, model=MODEL), context.rank, context.world), parallel, context.world
    )


def scores_of(engine: Engine, parallel: dict[str, Any], world: int) -> list[Score]:
    layout = resolve(ParallelConfig(**parallel), world)
    scorer = Scorer(engine, layout, context=SEQ, rows=2, hits=True)
    asked = requests()
    # The likeliest token after a context is one that the model would have chosen.
    likeliest = max(range(VOCAB), key=lambda n: scorer([(asked[0][0], [n])])[0].log_likelihood)
    return scorer([*asked, (asked[0][0], [likeliest])])


def by_hand() -> list[tuple[float, int, bool]]:
    """One request at a time, unpadded, in float64."""
    case = Case(model=MODEL)
    weights = {chunk.name: chunk.tensor for chunk in state_of(build(case, 0, 1)).chunks}
    model = Decoder(model_of(case)).double()  # type: ignore[arg-type]
    model.load_state_dict({name: weights[f"model.{name}"].double() for name in model.state_dict()})
    found = []
    asked = requests()
    with torch.no_grad():
        first = model(torch.tensor([asked[0][0]]))[0, -1].argmax()
        for before, behind in [*asked, (asked[0][0], [int(first)])]:
            ids = torch.tensor([[*before, *behind][-SEQ - 1 :]])
            logits = model(ids[:, :-1])[0, -len(behind) :]
            targets = ids[0, -len(behind) :]
            found.append((
                -float(F.cross_entropy(logits, targets, reduction="sum")),
                len(behind),
                bool((logits.argmax(dim=1) == targets).all()),
            ))  # fmt: skip
    return found


LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"zero": 3}),
    pytest.param(2, {"tp": 2}, marks=pytest.mark.slow),
    pytest.param(2, {"cp": 2, "zero": 1}, marks=pytest.mark.slow),
    (4, {"pp": 2, "tp": 2, "schedule": "interleaved_1f1b"}),
    (4, {"pp": 2, "zero": 2}),
]


def close(found: list[Score], expected: list[tuple[float, int, bool]]) -> None:
    assert [(one.tokens, one.greedy) for one in found] == [wanted[1:] for wanted in expected]
    for one, (log_likelihood, _, _) in zip(found, expected, strict=True):
        assert one.log_likelihood == pytest.approx(log_likelihood, rel=1e-5)


def test_log_likelihoods_are_those_of_one_text_alone_in_float64() -> None:
    expected = by_hand()
    assert any(greedy for _, _, greedy in expected) and not all(greedy for _, _, greedy in expected)
    close(scored(Alone(), {}), expected)


@pytest.mark.parametrize(("world", "parallel"), LAYOUTS, ids=str)
def test_log_likelihoods_do_not_depend_on_the_layout(
    ranks: Any, world: int, parallel: dict[str, Any]
) -> None:
    expected = by_hand()
    for found in ranks(world).run(scored, parallel):
        close(found, expected)


def scored_and_stepped(context: Any, parallel: dict[str, Any]) -> tuple[list[Score], float]:
    """The scores on the DeepSpeed engine, and the loss of the step that follows them."""
    case = Case(parallel={"engine": "deepspeed", **parallel}, model=MODEL, micro_batch=2)
    with engine_of(context, case) as engine:
        found = scores_of(engine, case.parallel, context.world)
        batches: Any = micro_batches(case, 0, engine.data_rank, engine.data_ranks)
        result = engine.step(batches, lr=case.lr)
        return found, result.loss_sum / result.count


@pytest.mark.parametrize(
    "parallel",
    [{"zero": 3}, *(pytest.param(one, marks=pytest.mark.slow) for one in ({"zero": 0}, OFFLOADED))],
)
def test_the_deepspeed_engine_reads_the_same_and_trains_on(ranks: Any, parallel: dict[str, Any]) -> None:
    pytest.importorskip("deepspeed")
    expected, case = by_hand(), Case(model=MODEL, micro_batch=2)
    alone: Any = micro_batches(case, 0, 0, 1)
    step = build(case, 0, 1).step(alone, lr=case.lr)
    for found, loss in ranks(2).run(scored_and_stepped, parallel):
        close(found, expected)
        assert loss == pytest.approx(step.loss_sum / step.count, rel=1e-5)


@pytest.mark.parametrize("length", [0, SEQ + 1])
def test_a_continuation_that_cannot_be_scored_is_one_line(length: int) -> None:
    case = Case()
    scorer = Scorer(build(case, 0, 1), resolve(ParallelConfig(), 1), context=SEQ, rows=2, hits=True)
    with pytest.raises(ValueError, match=rf"^a continuation of {length} tokens cannot be scored: give 1 to"):
        scorer([([0], [1] * length)])
