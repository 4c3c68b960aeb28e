"""A folder's weights, or a run's, are the same on every layout: bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ranks import RankPools
from runs import Alone, Case, State, assemble, build, curve, distance, model_of, state_of, train
from stock_models import as_ours, write_folder
from trainer.checkpoint import folder as checkpoints
from trainer.checkpoint.store import write_part
from trainer.first_weights.checkpoint_source import CheckpointSource
from trainer.first_weights.fill import fill
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.first_weights.match import match
from trainer.first_weights.source import WeightSource

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "pp-tp": (4, {"pp": 2, "tp": 2}),
    "zero3": (2, {"zero": 3}),
    "zero1": (2, {"zero": 1}),
    "deepspeed2": (2, {"engine": "deepspeed", "zero": 2}),
    "deepspeed3": (2, {"engine": "deepspeed", "zero": 3}),
}
# One model a layout; the rest is slow.
ALWAYS = {
    ("gpt2", "zero1"),
    ("gpt2", "deepspeed3"),
    ("gpt2", "pp-tp"),
    ("qwen3", "zero3"),
    ("qwen3", "deepspeed2"),
}
MODEL = {"tie_embeddings": True}
GPT2 = {
    "norm": "layer",
    "activation": "gelu_tanh",
    "attention_bias": "all",
    "mlp_bias": True,
    "kv_heads": 4,
    "positions": "learned",
    "max_positions": 32,
    "qk_norm": False,
}


def case_on(layout: str, **model: Any) -> Case:
    parallel = LAYOUTS[layout][1] if layout else {}
    return Case(parallel=parallel, model=model, micro_batch=1 if "pp" in parallel else 2, steps=3)


def begun(context: Any, case: Case, source: WeightSource) -> tuple[State, list[tuple[float, float]]]:
    """The engine's state once it was filled, and the steps from there."""
    engine = build(case, context.rank, context.world)
    try:
        chunks = engine.chunks()
        own = {c.name.removeprefix("model."): c.shape for c in chunks if c.name.startswith("model.")}
        each: list[Any] = [own]
        if context.world > 1:
            each = [None] * context.world
            dist.all_gather_object(each, own)
        ours = {name: shape for one in each for name, shape in one.items()}
        fill(chunks, source, match(ours, source, model_of(case).plan()))
        engine.load(engine.scalars())
        return state_of(engine), train(engine, case)
    finally:
        engine.close()


def from_folder(context: Any, case: Case, folder: Path) -> tuple[State, list[tuple[float, float]]]:
    return begun(context, case, HuggingFaceSource(folder))


def from_checkpoint(context: Any, case: Case, folder: Path) -> tuple[State, list[tuple[float, float]]]:
    return begun(context, case, CheckpointSource(folder, model_of(case)))


def write_checkpoint(context: Any, case: Case, folder: Path) -> None:
    """The checkpoint of a new engine, by all ranks."""
    engine = build(case, context.rank, context.world)
    part = write_part(folder, context.rank, engine.chunks())
    parts: list[Any] = [None] * context.world
    dist.all_gather_object(parts, part)
    if context.rank == 0:
        checkpoints.commit(folder, folder.with_name("saved"), parts, step=1, sequences=8)
    dist.barrier()
    engine.close()


def weights(states: list[State]) -> dict[str, Tensor]:
    return {n.removeprefix("model."): t for n, t in assemble(states).items() if n.startswith("model.")}


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        pytest.param(
            model, layout, id=f"{name}-{layout}", marks=() if (name, layout) in ALWAYS else pytest.mark.slow
        )
        for name, model in (("qwen3", MODEL), ("gpt2", GPT2))
        for layout in LAYOUTS
    ],
)
def test_a_folder_on_a_layout_is_one_process(
    layout: str, model: dict[str, Any], ranks: RankPools, tmp_path: Path
) -> None:
    case = case_on(layout, **model)
    theirs = write_folder(tmp_path / "folder", model_of(case))
    expected = as_ours(model_of(case), theirs)
    _, alone = from_folder(Alone(), case_on("", **model), tmp_path / "folder")
    found = ranks(LAYOUTS[layout][0]).run(from_folder, case, tmp_path / "folder")
    state = weights([state for state, _ in found])
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert distance(found[0][1], alone) <= 1e-5


@pytest.mark.parametrize("layout", ["pp-tp", "zero3"])
def test_new_rows_of_a_vocabulary_are_those_of_one_process(
    layout: str, ranks: RankPools, tmp_path: Path
) -> None:
    """Half-precision weights, an untied head, and 128 + 16 tokens: the first are the folder's, and the new
    ones are drawn as in a run from random weights.
    """
    case = case_on(layout, vocab=144)
    small = model_of(replace(case, model={}))
    expected = as_ours(small, write_folder(tmp_path / "folder", small, dtype=torch.bfloat16))
    found = ranks(LAYOUTS[layout][0]).run(from_folder, case, tmp_path / "folder")
    state = weights([state for state, _ in found])
    drawn = build(replace(case, parallel={}), 0, 1)
    first = weights([state_of(drawn)])
    drawn.close()
    for name, tensor in expected.items():
        assert torch.equal(state[name][: len(tensor)], tensor.float()), name
    for name in ("embed.weight", "head.weight"):
        assert len(state[name]) == 144
        assert torch.equal(state[name][128:], first[name][128:])


def test_a_checkpoint_of_one_layout_begins_another(ranks: RankPools, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    (tmp_path / "draft").mkdir()
    other = replace(case_on("pp-tp"), seed=2)
    ranks(4).run(write_checkpoint, other, tmp_path / "draft")
    drawn = build(replace(other, parallel={}), 0, 1)
    expected = weights([state_of(drawn)])
    drawn.close()
    found = ranks(2).run(from_checkpoint, case_on("zero3"), saved)
    state = weights([state for state, _ in found])
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def test_another_run_of_the_same_seed_differs() -> None:
    """What the tests above would not see, were both drawn from one seed."""
    assert distance(curve(Alone(), case_on("")), curve(Alone(), replace(case_on(""), seed=2))) > 1e-4
