"""Saved on any of eight layouts and engines, gone on with on any other: through real checkpoint folders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.engine import Engine
from runs import Alone, Case, State, assemble, assert_one_state, build, distance, reference, state_of, train
from trainer.checkpoint.manager import Checkpointer
from trainer.ranks import Ranks
from trainer.record.events import EventLog
from trainer.state import Identity, TrainState

TOLERANCE = 1e-5  # of the curve
STEPS = 4

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "zero1": (2, {"zero": 1}),
    "zero3": (2, {"zero": 3}),
    "tp": (2, {"tp": 2}),
    "interleaved": (2, {"pp": 2, "schedule": "interleaved_1f1b"}),
    "pp-tp": (4, {"pp": 2, "tp": 2}),
    "deepspeed2": (2, {"engine": "deepspeed", "zero": 2}),
    "deepspeed3": (2, {"engine": "deepspeed", "zero": 3}),
}

Curve = list[tuple[float, float]]
Saved = tuple[Path, dict[str, Tensor]]  # the run folder, and every tensor as it was when it was saved


def case_on(layout: str) -> Case:
    parallel = LAYOUTS[layout][1]
    return Case(parallel=parallel, micro_batch=1 if "pp" in parallel else 2, steps=STEPS)


def on(ranks: Any, layout: str, function: Any, *args: Any) -> list[Any]:
    # One process has its own pool too: DeepSpeed leaves a process group behind.
    return ranks(LAYOUTS[layout][0]).run(function, *args)


def checkpointer_of(context: Any, folder: Path) -> Checkpointer:
    return Checkpointer(
        folder,
        every=0,
        keep=0,
        asynchronous=False,
        identity=lambda sequences: Identity(data="corpus", seed=1),
        events=EventLog(None),
        ranks=Ranks(context.rank, context.world),
        patience_seconds=30,
    )


@contextmanager
def opened(context: Any, case: Case, folder: Path) -> Iterator[tuple[Engine, Checkpointer]]:
    engine = build(case, context.rank, context.world)
    checkpointer = checkpointer_of(context, folder)
    try:
        yield engine, checkpointer
    finally:
        checkpointer.close()
        engine.close()


def save(context: Any, case: Case, folder: Path) -> State:
    with opened(context, case, folder) as (engine, checkpointer):
        train(engine, case)
        checkpointer.save(TrainState(STEPS, STEPS * case.global_batch), engine)
        return state_of(engine)


def go_on(context: Any, case: Case, saved: dict[str, Path]) -> dict[str, tuple[State, Curve, State]]:
    """From each checkpoint: what was loaded, the curve from there, and the state at its end."""
    found = {}
    for source, folder in saved.items():
        with opened(context, replace(case, seed=99), folder) as (engine, checkpointer):
            state = checkpointer.resume(engine)
            assert state == TrainState(STEPS, STEPS * case.global_batch)
            loaded = state_of(engine)
            found[source] = loaded, train(engine, case, first_step=STEPS), state_of(engine)
    return found


@pytest.fixture(scope="module")
def saved(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """Layout → a run that was saved there. Each layout trains and saves once."""
    pytest.importorskip("deepspeed")
    made = {}
    for layout in LAYOUTS:
        folder = tmp_path_factory.mktemp(layout)
        states = on(ranks, layout, save, case_on(layout), folder)
        assert all(state.scalars == {"updates": STEPS} for state in states)
        made[layout] = folder, assemble(states)
    return made


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[Curve, dict[str, Tensor]]:
    """Curve and state of one process that never stopped."""
    case = replace(case_on("alone"), steps=2 * STEPS)
    engine = build(case, Alone.rank, Alone.world)
    assert train(engine, case) == reference(case)
    return reference(case)[STEPS:], assemble([state_of(engine)])


# Each from two others, so that each is gone on from twice; all 64 pairs are slow.
@pytest.mark.parametrize(
    "distances", [(1, 3), pytest.param(range(len(LAYOUTS)), marks=pytest.mark.slow)], ids=["two", "all"]
)
@pytest.mark.parametrize(
    "target",
    [
        name
        if name in ("alone", "zero3", "pp-tp", "deepspeed3")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in LAYOUTS
    ],
)
def test_goes_on_from_every_layout(
    ranks: Any,
    saved: dict[str, Saved],
    uninterrupted: tuple[Curve, dict[str, Tensor]],
    target: str,
    distances: Sequence[int],
) -> None:
    names = list(LAYOUTS)
    sources = [names[(names.index(target) + distance) % len(names)] for distance in distances]
    folders = {source: saved[source][0] for source in sources}
    results = on(ranks, target, go_on, case_on(target), folders)
    curve, ending = uninterrupted
    for source in sources:
        at_save = saved[source][1]
        loaded = assemble([found[source][0] for found in results])
        assert loaded.keys() == at_save.keys() == ending.keys()
        changed = [name for name in at_save if not torch.equal(loaded[name], at_save[name])]
        assert not changed, f"{source} → {target}: {changed[0]} is not what was saved"
        assert distance(results[0][source][1], curve) < TOLERANCE, f"{source} → {target}"
        end = assemble([found[source][2] for found in results])
        assert_one_state(end, ending)
