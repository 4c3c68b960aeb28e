"""Model state a rank holds when the optimiser runs: weights, gradients, moments, and nothing else."""

import gc
from typing import Any

import pytest
import torch

from parallel.torch_engine import TorchEngine
from runs import Alone, Case, build, micro_batches

SIZES = {"hidden": 64, "ffn_hidden": 192, "layers": 6, "vocab": 512}


def live_bytes() -> int:
    """Bytes of all storages that some Python object holds."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def held(
    context: Any, parallel: dict[str, Any], precision: str = "fp32", method: str = "_update"
) -> tuple[int, int, int]:
    """(bytes held before a method of the engine, parameters of the whole model, of its largest block)."""
    before = live_bytes()
    case = Case(parallel=parallel, precision=precision, model=SIZES, micro_batch=2)
    engine = build(case, context.rank, context.world)
    found: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        true = getattr(TorchEngine, method)

        def measured(self: TorchEngine, *args: Any) -> None:
            found.append(live_bytes() - before)
            true(self, *args)

        patch.setattr(TorchEngine, method, measured)
        for step in range(2):
            engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=1e-3)
    sizes: dict[str, int] = {}
    for chunk in engine.chunks():
        if chunk.name.startswith("model."):
            sizes[chunk.name] = torch.Size(chunk.shape).numel()
    block = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    return max(found), sum(sizes.values()), block


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_sixteen_bytes_a_parameter_over_all_ranks(ranks: Any, world: int, zero: int) -> None:
    for size, parameters, block in ranks(world).run(held, {"zero": zero}):
        assert size <= 1.02 * 16 * parameters / world + 4 * block
        assert size >= 16 * parameters / world * 0.98, "the count misses something"


def test_replicas_hold_everything(ranks: Any) -> None:
    for size, parameters, _ in ranks(2).run(held, {"zero": 0}):
        assert size >= 0.98 * 16 * parameters


@pytest.mark.parametrize("zero", [2, 3])
def test_micro_batches_add_to_one_set_of_gradients(zero: int) -> None:
    """Where FSDP adds them up, as on one process and on GPUs: after the last backward."""
    size, parameters, block = held(Alone(), {"zero": zero}, "bf16", "_collect_gradients")
    gathered = 0 if zero == 3 else parameters
    assert size <= 1.02 * 16 * parameters + 2 * gathered + 4 * block
