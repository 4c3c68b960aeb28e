"""What a rank holds: when the optimiser runs, weights, gradients, moments, and nothing else; and of many
micro-batches in a pipeline, those under way.
"""

import gc
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from parallel.layout.mesh import make_mesh
from parallel.pipeline.pipeline import Pipeline
from parallel.pipeline.stage import Stage
from parallel.torch_engine.engine import TorchEngine
from parallel.torch_engine.local_gradients import LocalGradients
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
    context: Any,
    parallel: dict[str, Any],
    precision: str = "fp32",
    holder: type = TorchEngine,
    method: str = "_update",
) -> tuple[int, int, int]:
    """(bytes held before a method of `holder`, parameters of the whole model, of its largest block)."""
    before = live_bytes()
    case = Case(parallel=parallel, precision=precision, model=SIZES, micro_batch=2)
    engine = build(case, context.rank, context.world)
    found: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        true = getattr(holder, method)

        def measured(self: Any, *args: Any) -> None:
            found.append(live_bytes() - before)
            true(self, *args)

        patch.setattr(holder, method, measured)
        for step in range(2):
            engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=1e-3)
    sizes: dict[str, int] = {}
    for chunk in engine.chunks():
        if chunk.name.startswith("model."):
            sizes[chunk.name] = torch.Size(chunk.shape).numel()
    block = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    return max(found), sum(sizes.values()), block


@pytest.mark.parametrize("zero", [*(pytest.param(zero, marks=pytest.mark.slow) for zero in (1, 2)), 3])
@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 4])
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
    size, parameters, block = held(Alone(), {"zero": zero}, "bf16", LocalGradients, "collect")
    gathered = 0 if zero == 3 else parameters
    assert size <= 1.02 * 16 * parameters + 2 * gathered + 4 * block


MEGABYTE = 2**20


@dataclass(frozen=True)
class Inputs:
    x: Tensor
    kwargs: dict[str, Tensor]


class MegabyteStage(nn.Module):
    """Hidden states of 1 MB, [1, 256, 1024], from tokens [1, 256] on the first stage; on the last a loss."""

    def __init__(self, first: bool, last: bool, count: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1024))
        self.first, self.last, self.missing, self.held_bytes = first, last, count, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.weight[x] if self.first else x + self.weight
        self.missing -= 1
        if self.missing == 0:
            self.held_bytes = live_bytes()
        return y.sum()[None] if self.last else y


def at_last_forward(context: Any, schedule: str, count: int) -> int:
    """Bytes that this rank holds when its last stage runs forward for the last of `count` micro-batches."""
    layout = resolve(ParallelConfig(pp=context.world, schedule=schedule), context.world)
    mesh = make_mesh(layout, torch.device("cpu"), fsdp=False)
    last = layout.stages - 1
    stages = {
        number: MegabyteStage(number == 0, number == last, count) for number in layout.stages_of(mesh.pp.rank)
    }
    made = Pipeline(
        dict(stages), lambda shape: (*shape, 1024), layout, mesh, torch.device("cpu"), torch.float32
    )
    inputs = [Inputs(torch.zeros(1, 256, dtype=torch.long), {})] * count
    made.train(inputs, lambda output, number: output.sum())
    return max(stage.held_bytes for stage in stages.values())


@pytest.mark.parametrize(
    "schedule",
    [
        "1f1b",
        "zbv_zero_bubble",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("interleaved_1f1b", "interleaved_zero_bubble", "dualpipe_v")
        ),
    ],
)
def test_a_pipeline_has_memory_for_the_micro_batches_under_way(ranks: Any, schedule: str) -> None:
    few, many = ranks(2).run(at_last_forward, schedule, 8), ranks(2).run(at_last_forward, schedule, 40)
    for before, after in zip(few, many):
        assert after - before < 4 * MEGABYTE, "32 micro-batches more, of 1 MB a boundary and direction"


def at_first_backward(context: Any, parallel: dict[str, Any], count: int) -> int:
    """Bytes that are held when the last stage has run all forwards that its schedule wants first."""
    case = Case(parallel=parallel, model={"vocab": 8192}, global_batch=count)
    engine = build(case, context.rank, context.world)
    found: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        own = Stage.backward_one_chunk

        def measured(self: Stage, *args: Any, **kwargs: Any) -> None:
            if self.is_last and not found:
                found.append(live_bytes())
            own(self, *args, **kwargs)

        patch.setattr(Stage, "backward_one_chunk", measured)
        engine.step(micro_batches(case, 0, engine.data_rank, engine.data_ranks), lr=1e-3)
    return max(found, default=0)


@pytest.mark.parametrize("schedule", ["gpipe", "looped_bfs"])
def test_a_head_has_one_weight_gradient(ranks: Any, schedule: str) -> None:
    """However many forwards come before the first backward: 8192 × 32 in float32, 1 MB."""
    parallel = {"pp": 2, "schedule": schedule}
    few, many = (max(ranks(2).run(at_first_backward, parallel, count)) for count in (4, 16))
    assert few > 0 and many - few < 2 * MEGABYTE
