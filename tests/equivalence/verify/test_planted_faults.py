"""The comparison must be able to fail: faults that real systems had, planted one by one, all found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from parallel.gradients.weight_gradients import Product
from parallel.torch_engine.engine import TorchEngine, Totals
from parallel.torch_engine.local_gradients import LocalGradients
from runs import SEQ, Alone, Batch, Case, build, distance, reference, train

FOUND = 1e-5  # what the layouts must stay below
Fault = Callable[[pytest.MonkeyPatch, int], None]


def normalisation_off_by_one_percent(patch: pytest.MonkeyPatch, rank: int) -> None:
    true = TorchEngine._reduce

    def reduce(*args: Any) -> Totals:
        totals = true(*args)
        return replace(totals, count=totals.count * 1.01)

    patch.setattr(TorchEngine, "_reduce", reduce)


def loss_off_by_one_percent(patch: pytest.MonkeyPatch, rank: int) -> None:
    """Only the reported loss is wrong: the gradient is right."""
    true = TorchEngine._reduce

    def reduce(*args: Any) -> Totals:
        totals = true(*args)
        return replace(totals, loss_sum=totals.loss_sum * 1.01)

    patch.setattr(TorchEngine, "_reduce", reduce)


def divisor_off_by_one_percent(patch: pytest.MonkeyPatch, rank: int) -> None:
    """Loss, count and gradient norm are right: only the gradient that the optimiser gets is wrong."""
    true = TorchEngine._update
    patch.setattr(TorchEngine, "_update", lambda self, lr, factor: true(self, lr, factor * 1.01))


def mean_of_means(patch: pytest.MonkeyPatch, rank: int) -> None:
    """Each micro-batch divided by its own count, as gradient accumulation is often written."""
    from trainer.objectives.causal_lm import CausalLM

    true = CausalLM.loss

    def loss(self: CausalLM, output: torch.Tensor, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, count = true(self, output, inputs)
        return total / count * SEQ, torch.full_like(count, SEQ)

    patch.setattr(CausalLM, "loss", loss)


def gradient_scaled_on_one_rank(patch: pytest.MonkeyPatch, rank: int) -> None:
    true = LocalGradients.collect

    def collect(self: LocalGradients) -> None:
        true(self)
        if rank == 1:
            for parameter in self._parameters:
                assert parameter.tensor.grad is not None
                parameter.tensor.grad.mul_(1.01)

    patch.setattr(LocalGradients, "collect", collect)


def norm_not_synchronised(patch: pytest.MonkeyPatch, rank: int) -> None:
    """Every rank clips by the norm of its own part."""
    true = TorchEngine._reduce

    def reduce(self: TorchEngine, sums: Any, squares: Any, *asked: bool) -> Totals:
        return replace(true(self, sums, squares, *asked), grad_squares=squares.item())

    patch.setattr(TorchEngine, "_reduce", reduce)


def replicated_gradients_left_partial(patch: pytest.MonkeyPatch, rank: int) -> None:
    """Norm weights keep each tp rank's share of the gradient: what made BLOOM's norms drift apart."""
    patch.setattr(LocalGradients, "sum_shared", lambda self: None)


def replicated_parameters_counted_twice(patch: pytest.MonkeyPatch, rank: int) -> None:
    patch.setattr("parallel.torch_engine.local_gradients.counts_in_norm", lambda parameter, mesh: True)


def micro_batch_counted_twice(patch: pytest.MonkeyPatch, rank: int) -> None:
    true = TorchEngine.step

    def step(self: TorchEngine, batches: list[Batch], **kwargs: Any) -> Any:
        return true(self, [batches[0], batches[0], *batches[2:]], **kwargs)

    patch.setattr(TorchEngine, "step", step)


def ranks_read_the_same_data(patch: pytest.MonkeyPatch, rank: int) -> None:
    patch.setattr(TorchEngine, "data_rank", 0)


def products_of_another_micro_batch(patch: pytest.MonkeyPatch, rank: int) -> None:
    """A zero-bubble schedule whose late weight gradients find the inputs of the pass before."""
    true, seen = Product.run, {}

    def run(self: Product) -> None:
        inputs = seen.get(id(self.weight), self.inputs)
        seen[id(self.weight)] = self.inputs
        true(replace(self, inputs=inputs))

    patch.setattr(Product, "run", run)


def half_of_the_late_products_lost(patch: pytest.MonkeyPatch, rank: int) -> None:
    """As torch 2.13's own zero-bubble stages lose weight gradients under ZeRO-3."""
    true, runs = Product.run, [0]

    def run(self: Product) -> None:
        runs[0] += 1
        true(self if runs[0] % 2 or rank == 0 else replace(self, rows=torch.zeros_like(self.rows)))

    patch.setattr(Product, "run", run)


FAULTS: list[tuple[Fault, int, dict[str, Any]]] = [
    (normalisation_off_by_one_percent, 1, {}),
    (normalisation_off_by_one_percent, 2, {"zero": 1}),
    (mean_of_means, 1, {}),
    (gradient_scaled_on_one_rank, 2, {"tp": 2}),
    (gradient_scaled_on_one_rank, 2, {"pp": 2}),
    (norm_not_synchronised, 2, {"tp": 2}),
    (norm_not_synchronised, 2, {"pp": 2}),
    (replicated_gradients_left_partial, 2, {"tp": 2}),
    (replicated_parameters_counted_twice, 2, {"tp": 2}),
    (micro_batch_counted_twice, 2, {"zero": 2}),
    (micro_batch_counted_twice, 2, {"pp": 2}),
    (ranks_read_the_same_data, 2, {"zero": 1}),
    (products_of_another_micro_batch, 2, {"pp": 2, "schedule": "zbv_zero_bubble"}),
    (half_of_the_late_products_lost, 2, {"pp": 2, "schedule": "interleaved_zero_bubble"}),
]


def faulty_curve(context: Any, case: Case, fault: Fault) -> list[tuple[float, float]]:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch, context.rank)
        return train(build(case, context.rank, context.world), case)


@pytest.mark.parametrize(
    ("fault", "world", "parallel"),
    FAULTS,
    ids=[f"{fault.__name__}-{'-'.join(parallel) or 'alone'}" for fault, _, parallel in FAULTS],
)
def test_fault_is_found(ranks: Any, fault: Fault, world: int, parallel: dict[str, Any]) -> None:
    case = Case(parallel=parallel, micro_batch=1 if "pp" in parallel else 2, steps=3)
    curves = (
        ranks(world).run(faulty_curve, case, fault) if world > 1 else [faulty_curve(Alone(), case, fault)]
    )
    assert all(distance(one, reference(case)) > 10 * FOUND for one in curves)
