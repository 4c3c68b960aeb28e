"""Model state a rank holds when the optimiser runs: weights, gradients, moments, and nothing else."""

import gc
from typing import Any

import pytest
import torch

from parallel.torch_engine import TorchEngine
from runs import Case, build, micro_batches

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


def held_at_update(context: Any, parallel: dict[str, Any]) -> tuple[int, int, int]:
    """(bytes held before the update, parameters of the whole model, of its largest block)."""
    before = live_bytes()
    case = Case(parallel=parallel, model=SIZES, micro_batch=2)
    engine = build(case, context.rank, context.world)
    held: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        true = TorchEngine._update

        def update(self: TorchEngine, lr: float, factor: float) -> None:
            held.append(live_bytes() - before)
            true(self, lr, factor)

        patch.setattr(TorchEngine, "_update", update)
        for step in range(2):
            engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=1e-3)
    sizes: dict[str, int] = {}
    for chunk in engine.chunks():
        if chunk.name.startswith("model."):
            sizes[chunk.name] = torch.Size(chunk.shape).numel()
    block = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    return max(held), sum(sizes.values()), block


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_sixteen_bytes_a_parameter_over_all_ranks(ranks: Any, world: int, zero: int) -> None:
    for held, parameters, block in ranks(world).run(held_at_update, {"zero": zero}):
        assert held <= 1.02 * 16 * parameters / world + 4 * block
        assert held >= 16 * parameters / world * 0.98, "the count misses something"


def test_replicas_hold_everything(ranks: Any) -> None:
    for held, parameters, _ in ranks(2).run(held_at_update, {"zero": 0}):
        assert held >= 0.98 * 16 * parameters
