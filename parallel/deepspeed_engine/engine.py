"""The DeepSpeed engine: ZeRO 0-3 and offloading, driven through Accelerate; the torch engine's result."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.model_plan import ModelPlan
from common.objective import ModelInputs, Objective
from parallel.config import ParallelConfig
from parallel.deepspeed_engine import start as deepspeed_start
from parallel.deepspeed_engine.masters import Masters
from parallel.deepspeed_engine.optim import FlatAdamW, from_factory
from parallel.engine import Chunk, Evaluation, Micro, OptimizerFactory, StepResult
from parallel.gradients.scaling import Normalisation, squares
from parallel.gradients.sums import BySource, Sums, unpack
from parallel.layout.layout import Layout
from parallel.parameters.initialize import draw
from parallel.relied_on import insist
from parallel.transforms.recompute import apply_recompute
from parallel.world.runtime import Runtime


def build_deepspeed_engine(
    *,
    layout: Layout,
    runtime: Runtime,
    cfg: ParallelConfig,
    plan: ModelPlan,
    model_factory: Callable[[], nn.Module],
    objective: Objective,
    optimizer_factory: OptimizerFactory,
    precision: str,
    clip: float,
    seed: int,
    micro_batch: int,
    global_batch: int,
    seq_len: int,
    sources: int = 0,
) -> "DeepSpeedEngine":
    """As `build.build_engine`. Collective. ValueError for what the engine does not do, each with the remedy.

    With ZeRO-1 and above, weights, moments and accumulated gradients are float32 whatever `precision` is, as
    on the torch engine. Without ZeRO, DeepSpeed adds gradients up in `precision` and offers nothing else.
    """
    deepspeed_start.check(cfg)
    with torch.device("meta"):
        shadow = model_factory()
    shapes = {name: tuple(parameter.shape) for name, parameter in shadow.named_parameters()}
    canonical = {alias: name for name, alias in plan.tied}
    names = {name: canonical.get(name, name) for name in shapes}
    with contextlib.ExitStack() as stack:
        stack.enter_context(deepspeed_start.world(runtime))
        swap = stack.enter_context(deepspeed_start.swap_folder(cfg, runtime.rank))
        config = deepspeed_start.deepspeed_config(
            cfg,
            layout,
            swap=swap,
            precision=precision,
            micro_batch=micro_batch,
            micro_batches=layout.micro_batches(global_batch, micro_batch),
            elements=sum(map(math.prod, shapes.values())),
            largest=max(map(math.prod, shapes.values())),
        )
        with deepspeed_start.quiet():
            model = deepspeed_start.build_model(model_factory, config, runtime.device)
            apply_recompute(model.get_submodule(plan.blocks), cfg.recompute)  # type: ignore[arg-type]
            parameters = {names[name]: (value, shapes[name]) for name, value in model.named_parameters()}
            optimizer = from_factory(optimizer_factory, parameters)
            engine = deepspeed_start.prepare(model, optimizer, config)
        # Only now: masters that DeepSpeed makes of weights already cast to bf16 are not the torch engine's.
        masters = Masters(engine, optimizer, names)
        for master in masters.each(write=True):
            master.fill(draw(master.name, master.shape, plan, seed, runtime.device))
        masters.publish()
        leave = stack.pop_all().close
    return DeepSpeedEngine(
        engine,
        optimizer,
        masters,
        objective,
        layout=layout,
        runtime=runtime,
        precision=precision,
        clip=clip,
        nominal_count=global_batch * seq_len,
        sources=sources,
        leave=leave,
    )


class DeepSpeedEngine:
    """See `engine.Engine`; the arithmetic is `TorchEngine`'s.

    DeepSpeed averages gradients over ranks, and would over micro-batches. Here a micro-batch's loss is taken
    ranks × loss scale / nominal times and not divided by their number, so that the optimiser is handed the
    sum of loss × loss scale / nominal; `FlatAdamW` divides it by the true count, and clips. DeepSpeed's own
    clipping and loss scaling are off, for they know of no count.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: FlatAdamW,
        masters: Masters,
        objective: Objective,
        *,
        layout: Layout,
        runtime: Runtime,
        precision: str,
        clip: float,
        nominal_count: int,
        sources: int,
        leave: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._optimizer = optimizer
        self._masters = masters
        self._objective = objective
        self._layout = layout
        self._runtime = runtime
        self._sources = sources
        self._normalisation = Normalisation(precision=precision, nominal_count=nominal_count, clip=clip)
        self._grad_norm = math.inf
        self._leave = leave

    @property
    def data_rank(self) -> int:
        return self._layout.data_rank(self._runtime.rank)

    @property
    def data_ranks(self) -> int:
        return self._layout.dp

    @property
    def is_first_of_data_rank(self) -> bool:
        return self._layout.is_first_of_data_rank(self._runtime.rank)

    @property
    def axes(self) -> dict[str, str]:
        return {}  # DeepSpeed's groups are its own

    # -- one step -------------------------------------------------------------------------------------------

    def step(
        self, batches: Sequence[Micro], *, lr: float, stop: bool = False, exchange: bool = False
    ) -> StepResult:
        """Forward, backward and update over the global batch; `batches` is this data rank's part of it."""
        self._masters.forget()
        normalisation = self._normalisation
        loss_scale = normalisation.loss_scale
        sums = self._accumulate(batches, normalisation.loss_factor * self.data_ranks)
        asked, told, loss_sum, count, by_source = self._reduce(sums, stop, exchange)
        skipped = self._update(lr, normalisation.to_mean(count))
        overflow = not math.isfinite(self._grad_norm)
        learnt = overflow or count > 0  # an empty batch says nothing of the loss scale
        fault = "the gradient is not finite" if learnt and normalisation.update(overflow=overflow) else ""
        return StepResult(
            loss_sum=loss_sum,
            count=count,
            grad_norm=self._grad_norm,
            skipped=skipped,
            stop=asked > 0,
            loss_scale=loss_scale,
            fault=fault,
            exchange=told > 0,
            sources=by_source,
        )

    def _accumulate(self, batches: Sequence[Micro], factor: float) -> Sums:
        """Backward of factor × loss over the micro-batches, reduced at the last. This rank's sums."""
        sums = Sums(self._sources, 2, self._runtime.device)
        self._engine.train()
        for number, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            inputs, source = self._inputs(batch)
            losses, counts = self._objective.loss(self._engine(inputs.x, **inputs.kwargs), inputs)
            self._engine.backward(losses.sum() * factor, scale_wrt_gas=False)
            sums.add(losses, counts, source)
        return sums

    def _inputs(self, batch: Micro) -> tuple[ModelInputs, Tensor | None]:
        """What the model is fed, and the data source of each row where that is known."""
        moved = batch.to(self._runtime.device)
        return self._objective.inputs(moved.tensors, moved.sequences), moved.tensors.get("source")

    def _reduce(
        self, sums: Sums, stop: bool, exchange: bool = False
    ) -> tuple[float, float, float, float, BySource]:
        """(ranks asked to stop, ranks that ask for an exchange, loss sum, count, these two by source) of all
        ranks.
        """
        sums.others[0], sums.others[1] = float(stop), float(exchange)
        dist.all_reduce(sums.packed)
        asked, told, *rest = sums.packed.tolist()
        return asked, told, *unpack(rest)

    def _update(self, lr: float, to_mean: float) -> bool:
        """The update with gradients × `to_mean`, clipped. True: skipped, because a gradient was not finite or
        `to_mean` is 0.
        """
        self._grad_norm = math.inf

        @functools.cache
        def divisor() -> Tensor | None:  # DeepSpeed calls for it once a group, when it has the norm
            norm = self._grad_norm = self._norm() * to_mean
            if not math.isfinite(norm) or not to_mean:
                return None
            return torch.tensor(1.0 / self._normalisation.clipped(to_mean, norm))

        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.divisor = divisor
        self._engine.step()
        self._optimizer.divisor = None
        skipped = not math.isfinite(self._grad_norm) or not to_mean
        self._optimizer.steps += not skipped
        return skipped

    def _norm(self) -> float:
        """Of the gradients as DeepSpeed holds them, over all ranks."""
        if self._engine.optimizer is not self._optimizer:
            insist("deepspeed", self._engine.optimizer, "_global_grad_norm")
            return float(self._engine.optimizer._global_grad_norm)
        grads = [
            parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None
        ]
        return math.sqrt(squares(grads))

    # -- evaluation -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Micro], *, stop: bool = False) -> Evaluation:
        """Over the batches of all data ranks, which must give equally many."""
        sums = Sums(0, 2, self._runtime.device)
        self._engine.eval()
        for batch in batches:
            inputs, _ = self._inputs(batch)
            output = self._engine(inputs.x, **inputs.kwargs)
            sums.add(*self._objective.loss(output, inputs), None)
        asked, _, loss_sum, count, _ = self._reduce(sums, stop)
        return Evaluation(loss_sum, count, asked > 0)

    # -- state ----------------------------------------------------------------------------------------------

    def chunks(self) -> list[Chunk]:
        """Master weights and optimiser state: each rank's share, cut into boxes, as live memory.

        What is offloaded to nvme comes as copies, valid until the next step: `load` takes them back.
        """
        return self._masters.chunks()

    def scalars(self) -> dict[str, Any]:
        """What is not a tensor: the optimiser's updates so far and fp16's loss scale."""
        return {"updates": self._optimizer.steps, **self._normalisation.state()}

    def load(self, scalars: dict[str, Any]) -> None:
        """Take over after the chunks were filled."""
        self._optimizer.steps = int(scalars["updates"])
        self._normalisation.restore(scalars)
        self._masters.publish()

    def close(self) -> None:
        """Let go of the model. The process group is the runtime's."""
        self._engine.destroy()
        self._engine = self._masters = None  # type: ignore[assignment]
        deepspeed_start.release()
        self._leave()
