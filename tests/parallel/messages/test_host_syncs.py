"""A step waits for the device once, at its one reduction: on CUDA each further read of a tensor's value, and
each copy from pageable memory, would stop the host until everything queued before it is done.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from data.stream.batch import Batch
from runs import Alone, Case, build, micro_batches

# What reads a tensor's value, or makes as many elements as values say.
READS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "nonzero",
    "equal",
}
READS |= {"unique", "masked_select", "__contains__", "is_nonzero", "allclose"}
OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "equal")


class Reads(TorchFunctionMode):
    """Counts calls from Python that read values, and constants copied from Python numbers or lists."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        if name in READS or name in ("tensor", "as_tensor"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class ScalarReads(TorchDispatchMode):
    """Counts the operators beneath, wherever they are called from: autograd, FSDP, the optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.rpartition("::")[2]
        if name in OPERATORS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def counted(context: Any, case: Case) -> tuple[dict[str, int], dict[str, int]]:
    """Of the third step: what is made once was made before."""
    engine = build(case, context.rank, context.world)
    steps = [micro_batches(case, step, engine.data_rank, engine.data_ranks) for step in range(3)]
    for batches in steps[:2]:
        engine.step(batches, lr=1e-3)
    with Reads() as reads, ScalarReads() as operators:
        engine.step(steps[2], lr=1e-3)
    return dict(reads.found), dict(operators.found)


CASES = [
    (1, Case(micro_batch=2)),
    (1, Case(micro_batch=2, precision="bf16", documents=True)),
    (1, Case(micro_batch=2, precision="fp16", optimizer="muon")),
    (1, Case(micro_batch=2, state_dtype="bf16", optimizer="muon")),
    (1, Case(micro_batch=2, parallel={"recompute": "selective"})),
    (2, Case(micro_batch=2, parallel={"zero": 1})),
    (2, Case(micro_batch=2, parallel={"zero": 3}, precision="bf16", optimizer="muon")),
    (2, Case(micro_batch=2, parallel={"tp": 2}, documents=True)),
]


@pytest.mark.parametrize(("world", "case"), CASES, ids=range(len(CASES)))
def test_one_read_a_step(ranks: Any, world: int, case: Case) -> None:
    for reads, operators in ranks(world).run(counted, case) if world > 1 else [counted(Alone(), case)]:
        assert reads == {"tolist": 1}
        assert operators == {}


def test_a_read_too_many_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test is for: the loss of every micro-batch, looked at."""
    from trainer.objectives.causal_lm import CausalLM

    true = CausalLM.loss

    def loss(self: CausalLM, output: Any, inputs: Any) -> Any:
        output.sum().item()
        return true(self, output, inputs)

    monkeypatch.setattr(CausalLM, "loss", loss)
    reads, operators = counted(Alone(), Case(micro_batch=2))
    assert reads == {"tolist": 1, "item": 4}
    assert operators == {"_local_scalar_dense": 4}


def test_a_batch_goes_to_cuda_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole: a copy of every other element would be gathered in pageable memory first."""
    did: list[tuple[str, bool]] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        did.append(("pin", tensor.is_contiguous()))
        return tensor

    def to(tensor: torch.Tensor, device: Any, non_blocking: bool) -> torch.Tensor:
        did.append(("to", non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch = Batch({"tokens": torch.zeros(2, 5, dtype=torch.int64)[:, :-1]}, (0, 1))
    batch.to("cuda")
    assert did == [("pin", True), ("to", True)]
    did.clear()
    batch.to("cpu")
    assert did == [("to", True)]
    did.clear()
    Batch({"tokens": torch.zeros(2, 4, dtype=torch.int64, device="meta")}, (0, 1)).to("cuda")
    assert did == [("to", True)], "only a CPU's memory can be pinned"
