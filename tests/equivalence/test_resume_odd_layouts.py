"""Odd sizes on odd layouts: what one saves, every other loads and saves again to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume_anywhere import checkpointer_of, opened
from torch import Tensor

from runs import Case, State, assemble, state_of, train
from trainer.checkpoint.folder import step_folder, verify
from trainer.checkpoint.store import read_tensor
from trainer.state import TrainState

pytestmark = pytest.mark.slow

# Five layers over three stages; 50 columns over tp 2 are 25, over 3 shards 17, 17, 16; 2 heads of keys.
MODEL = {"hidden": 36, "heads": 6, "kv_heads": 2, "ffn_hidden": 50, "vocab": 130, "layers": 5}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "cp2-shard3": (6, {"cp": 2, "zero": 3}),
    "hsdp": (6, {"dp_replicate": 3, "dp_shard": 2, "zero": 3}),
    "pp3-tp2": (6, {"pp": 3, "tp": 2, "cut": "cost"}),
    "zero1": (5, {"zero": 1}),
    "zero3": (5, {"zero": 3}),
    "cp2-pp2-shard2": (8, {"cp": 2, "pp": 2, "dp_shard": 2, "zero": 2, "cut": "cost"}),
    "deepspeed2": (3, {"engine": "deepspeed", "zero": 2}),
    "deepspeed3": (3, {"engine": "deepspeed", "zero": 3}),
}


def case_on(layout: str) -> Case:
    world, parallel = LAYOUTS[layout]
    batch = 4 * world if world == 5 else 24
    return Case(parallel=parallel, model=MODEL, global_batch=batch, micro_batch=1, steps=1)


def save(context: Any, case: Case, folder: Path) -> State:
    with opened(context, case, folder) as (engine, checkpointer):
        train(engine, case)
        checkpointer.save(TrainState(1, case.global_batch), engine)
        return state_of(engine)


def load_and_save(context: Any, case: Case, sources: dict[str, Path], to: Path) -> None:
    """Load each source into an engine of other weights, and save it again."""
    for name, folder in sources.items():
        with opened(context, replace(case, seed=99), folder) as (engine, checkpointer):
            state = checkpointer.resume(engine)
            assert state is not None
            again = checkpointer_of(context, to / name)
            again.save(state, engine)
            again.close()


def whole(run: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint that verifies."""
    folder = step_folder(run / "checkpoints", 1)
    return {name: read_tensor(folder, name) for name in verify(folder).tensors}


@pytest.fixture(scope="module")
def saved(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layout → a run that was saved there, which holds what its ranks held."""
    pytest.importorskip("deepspeed")
    made = {}
    for name, (world, _) in LAYOUTS.items():
        made[name] = tmp_path_factory.mktemp(name)
        held = assemble(ranks(world).run(save, case_on(name), made[name]))
        stored = whole(made[name])
        assert held.keys() == stored.keys()
        assert all(torch.equal(stored[key], held[key]) for key in held), name
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_and_saves_what_any_other_saved(
    ranks: Any, saved: dict[str, Path], layout: str, tmp_path: Path
) -> None:
    ranks(LAYOUTS[layout][0]).run(load_and_save, case_on(layout), saved, tmp_path)
    for source, run in saved.items():
        expected, found = whole(run), whole(tmp_path / source)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), source
