"""Checkpoints of the DeepSpeed engine: each engine goes on from the other's, bit for bit where it can be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspeed_cases import OFFLOADED, STEPS, TOLERANCE, deepspeed, engine_of, label
from parallel.engine import Engine, KeepsOnDisk
from runs import (
    Alone,
    Case,
    State,
    assemble,
    distance,
    fill,
    micro_batches,
    reference,
    state_of,
    train,
)
from trainer.checkpoint import folder as folders
from trainer.checkpoint import store
from trainer.checkpoint.description import described
from trainer.checkpoint.merge import Part

pytest.importorskip("deepspeed")

UNEVEN = {"hidden": 36, "heads": 6, "kv_heads": 2, "ffn_hidden": 50, "vocab": 130}


def train_and_save(context: Any, case: Case) -> State:
    with engine_of(context, case) as engine:
        train(engine, case)
        return state_of(engine)


def resume_and_train(context: Any, case: Case, whole: dict[str, Tensor], scalars: dict[str, Any]) -> Any:
    with engine_of(context, replace(case, seed=99)) as engine:
        fill(engine, whole, scalars)
        return train(engine, case, first_step=STEPS)


def load_and_save(context: Any, case: Case, whole: dict[str, Tensor], scalars: dict[str, Any]) -> Any:
    with engine_of(context, replace(case, seed=99)) as engine:
        fill(engine, whole, scalars)
        state = state_of(engine)
        batches: Any = micro_batches(case, STEPS, engine.data_rank, engine.data_ranks)
        return state, engine.evaluate(batches), engine.step(batches, lr=1e-3)


# ZeRO-2 and 3 are among the pairs of test_resume_anywhere.
@pytest.mark.parametrize(
    "parallel",
    [*(pytest.param({"zero": zero}, marks=pytest.mark.slow) for zero in (0, 1)), OFFLOADED],
    ids=label,
)
def test_each_engine_goes_on_from_the_other(ranks: Any, parallel: dict[str, Any]) -> None:
    ours, others = deepspeed(parallel, steps=STEPS), Case(parallel={"zero": 2}, micro_batch=2, steps=STEPS)
    straight = reference(replace(ours, steps=2 * STEPS))[STEPS:]
    for first, second in ((ours, others), (others, ours)):
        states = ranks(2).run(train_and_save, first)
        assert states[0].scalars == {"updates": STEPS}
        curves = ranks(2).run(resume_and_train, second, assemble(states), states[0].scalars)
        assert distance(curves[0], straight) < TOLERANCE


@pytest.mark.parametrize("parallel", [{"zero": 0}, {"zero": 2}, OFFLOADED], ids=label)
def test_bf16_state_passes_through_unchanged(ranks: Any, parallel: dict[str, Any]) -> None:
    """Before any step, into an engine with other weights: every bit, and the model computes with it."""
    made = train_and_save(Alone(), Case(precision="bf16", micro_batch=2, steps=STEPS))
    whole = assemble([made])
    case = deepspeed(parallel, precision="bf16", steps=STEPS)
    results = ranks(2).run(load_and_save, case, whole, made.scalars)
    passed = assemble([state for state, _, _ in results])
    assert passed.keys() == whole.keys()
    assert all(torch.equal(passed[name], whole[name]) for name in whole)
    _, evaluated, stepped = results[0]
    _, expected, expected_step = load_and_save(
        Alone(), replace(case, parallel={}, micro_batch=8), whole, made.scalars
    )
    assert evaluated.count == expected.count == stepped.count
    # The same bf16 weights, other shapes of matrix products: one rounding an operator.
    assert evaluated.loss_sum == pytest.approx(expected.loss_sum, rel=2e-3)
    assert stepped.loss_sum == pytest.approx(evaluated.loss_sum, rel=1e-6)
    assert stepped.grad_norm == pytest.approx(expected_step.grad_norm, rel=2e-2)


def part_of(context: Any, case: Case) -> Part:
    with engine_of(context, case) as engine:
        owned = [chunk for chunk in engine.chunks() if chunk.owned and chunk.tensor.numel()]
        return described(context.rank, ["file"], [owned], {})


def test_pieces_of_zero_3_are_described_by_their_cut(ranks: Any) -> None:
    for rank, part in enumerate(ranks(2).run(part_of, deepspeed({"zero": 3}))):
        assert (((2,),), rank) in {(share.parts, share.number) for share in part.shares} and not part.tensors


def write(context: Any, case: Case, folder: Path) -> tuple[Part, State]:
    with engine_of(context, case) as engine:
        train(engine, case)
        return store.write_part(folder, context.rank, engine.chunks()), state_of(engine)


def read(context: Any, case: Case, folder: Path) -> State:
    with engine_of(context, replace(case, seed=99)) as engine:
        store.load(folder, engine.chunks())
        return state_of(engine)


@pytest.mark.parametrize(
    ("world", "zero", "other"),
    [(2, 1, 2), (2, 2, 3), pytest.param(4, 2, 1, marks=pytest.mark.slow)],
)
def test_zero_1_and_2_write_parts_of_vectors_which_load_into_other_layouts(
    ranks: Any, tmp_path: Path, world: int, zero: int, other: int
) -> None:
    """With sizes that leave parts uneven and the vectors padded; each part's ends are inside of tensors."""
    case = deepspeed({"zero": zero}, steps=1, model=UNEVEN)
    (tmp_path / ".tmp-x").mkdir()
    found = ranks(world).run(write, case, tmp_path / ".tmp-x")
    parts = [part for part, _ in found]
    for rank, part in enumerate(parts):
        assert not part.tensors and not part.shares, "one by one, or cut otherwise"
        assert {(one.parts, one.number, one.rank) for one in part.vectors} == {(((world,),), rank, rank)}
    assert rows_of(parts[0]) & rows_of(parts[1]), "a tensor that two ranks have elements of"
    folder = tmp_path / "step-000000001"
    folders.commit(tmp_path / ".tmp-x", folder, parts, step=1, sequences=8)
    whole = assemble([state for _, state in found])
    alone = [read(Alone(), replace(case, parallel={}), folder)]
    elsewhere = ranks(2).run(read, deepspeed({"zero": other}, steps=1, model=UNEVEN), folder)
    for loaded in (assemble(alone), assemble(elsewhere)):
        assert loaded.keys() == whole.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())


def rows_of(part: Part) -> set[Any]:
    return {row for one in part.vectors for row in one.table}


def interrupted(context: Any, case: Case) -> bool:
    """Whether six steps and three, then three resumed, end in the same bits."""
    whole: dict[str, Tensor] = {}

    def steps(engine: Engine, first: int, last: int) -> None:
        for step in range(first, last):
            batches: Any = micro_batches(case, step, engine.data_rank, engine.data_ranks)
            engine.step(batches, lr=1e-3)

    with engine_of(context, case) as engine:
        steps(engine, 0, 6)
        straight = state_of(engine)
    with engine_of(context, case) as engine:
        steps(engine, 0, 3)
        whole, scalars = {c.name + str(c.offset): c.tensor.clone() for c in engine.chunks()}, engine.scalars()
    with engine_of(context, case) as engine:
        for chunk in engine.chunks():
            chunk.tensor.copy_(whole[chunk.name + str(chunk.offset)])
        engine.load(scalars)
        steps(engine, 3, 6)
        resumed = state_of(engine)
    same = all(torch.equal(a.tensor, b.tensor) for a, b in zip(straight.chunks, resumed.chunks, strict=True))
    return same and straight.scalars == resumed.scalars


@pytest.mark.parametrize(
    ("parallel", "precision"),
    [
        pytest.param({"zero": 0}, "fp16", marks=pytest.mark.slow),
        pytest.param({"zero": 1}, "bf16", marks=pytest.mark.slow),
        ({"zero": 2}, "fp32"),
        (OFFLOADED, "bf16"),
    ],
    ids=label,
)
def test_resume_is_bit_identical(ranks: Any, parallel: dict[str, Any], precision: str) -> None:
    assert all(ranks(2).run(interrupted, deepspeed(parallel, precision=precision)))


def compiled(operator: str) -> bool:
    from torch.utils.cpp_extension import get_default_build_root

    # For this very torch: another's is compiled again, for minutes. Where that was killed, a lock is left, or
    # objects that are newer than the library.
    ours = str(Path(torch.__file__).parent)
    return any(
        ours in (library.parent / "build.ninja").read_text()
        and not (library.parent / "lock").exists()
        and all(part.stat().st_mtime <= library.stat().st_mtime for part in library.parent.glob("*.o"))
        for library in Path(get_default_build_root()).glob(f"*/{operator}/{operator}.so")
    )


def streams(context: Any, case: Case) -> tuple[bool, int, int, int]:
    """Whether the batches have what `chunks` has; bytes of the largest batch, of all, and copies made."""
    with engine_of(context, case) as engine:
        train(engine, case)
        assert isinstance(engine, KeepsOnDisk)
        batches = engine.batches()
        assert batches is not None
        seen: dict[Any, Tensor] = {}
        sizes = []
        for batch in batches:
            sizes.append(sum(chunk.tensor.nbytes for chunk in batch))
            seen |= {(chunk.name, chunk.offset): chunk.tensor.clone() for chunk in batch}
        copied = len(engine._masters._copies)  # type: ignore[attr-defined]
        chunks = engine.chunks()
        same = len(chunks) == len(seen) and all(
            torch.equal(seen[chunk.name, chunk.offset], chunk.tensor) for chunk in chunks
        )
        return same, max(sizes), sum(sizes), copied


def test_state_on_nvme_is_streamed_in_batches(ranks: Any, tmp_path: Path) -> None:
    if not compiled("async_io"):
        pytest.skip("DeepSpeed's async_io is not compiled here: it needs libaio-dev and takes minutes")
    parallel = {"zero": 3, "offload_optimizer": "nvme", "nvme_path": str(tmp_path)}
    case = deepspeed(parallel, model={"hidden": 256, "ffn_hidden": 1024}, steps=2)
    for same, largest, whole, copied in ranks(2).run(streams, case):
        assert same and not copied
        assert largest < whole, "what is on the disk comes apart from what is in memory"


def test_offload_to_nvme_trains_saves_and_resumes(ranks: Any, tmp_path: Path) -> None:
    if not compiled("async_io"):
        pytest.skip("DeepSpeed's async_io is not compiled here: it needs libaio-dev and takes minutes")
    # Wide enough that matrices (1 MB and more a rank) go to the disk, while norms stay in memory.
    parallel = {
        "zero": 3,
        "offload_optimizer": "nvme",
        "offload_parameters": "nvme",
        "nvme_path": str(tmp_path),
    }
    case = deepspeed(parallel, model={"hidden": 128, "ffn_hidden": 512}, steps=STEPS)
    states = ranks(2).run(train_and_save, case)
    assert not list(tmp_path.iterdir())
    curves = ranks(2).run(resume_and_train, case, assemble(states), states[0].scalars)
    assert distance(curves[0], reference(replace(case, steps=2 * STEPS))[STEPS:]) < TOLERANCE
