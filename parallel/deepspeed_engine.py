"""The DeepSpeed engine: ZeRO 0-3 with offloading, driven through Accelerate, its result the torch engine's."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel import deepspeed_masters, deepspeed_start
from parallel.config import ParallelConfig
from parallel.deepspeed_optim import Factory, FlatAdamW, from_factory
from parallel.engine import Chunk, Micro, ModelInputs, Objective, StepResult
from parallel.initialize import draw
from parallel.plan import Layout, ModelPlan
from parallel.recompute import apply_recompute
from parallel.runtime import Runtime
from parallel.scaling import LossScale


def build_deepspeed_engine(
    *,
    layout: Layout,
    runtime: Runtime,
    cfg: ParallelConfig,
    model_factory: Callable[[], nn.Module],
    objective: Objective,
    optimizer_factory: Factory,
    precision: str,
    clip: float,
    seed: int,
    micro_batch: int,
    global_batch: int,
    seq_len: int,
) -> "DeepSpeedEngine":
    """As `build.build_engine`. Collective. ValueError for what the engine does not do, each with the remedy.

    Under ZeRO-1 and above, weights, moments and gradients over micro-batches are float32 whatever `precision` is,
    as on the torch engine. Without ZeRO, DeepSpeed adds gradients up in `precision`, and offers nothing else.
    """
    deepspeed_start.check(cfg)
    with torch.device("meta"):
        shadow = model_factory()
    plan: ModelPlan = shadow.plan  # type: ignore[assignment]
    shapes = {name: tuple(parameter.shape) for name, parameter in shadow.named_parameters()}
    config = deepspeed_start.deepspeed_config(
        cfg,
        layout,
        precision=precision,
        micro_batch=micro_batch,
        micro_batches=layout.micro_batches(global_batch, micro_batch),
        elements=sum(map(math.prod, shapes.values())),
        largest=max(map(math.prod, shapes.values())),
    )
    canonical = {alias: name for name, alias in plan.tied}
    names = {name: canonical.get(name, name) for name in shapes}
    with deepspeed_start.world(runtime):
        model = deepspeed_start.build_model(model_factory, config, runtime.device)
        apply_recompute(model.get_submodule(plan.blocks), cfg.recompute)  # type: ignore[arg-type]
        parameters = {names[name]: (value, shapes[name]) for name, value in model.named_parameters()}
        optimizer = from_factory(optimizer_factory, parameters)
        engine = deepspeed_start.prepare(model, optimizer, config)
    # After DeepSpeed has cut and cast: masters rounded through bf16 would be other weights than the torch engine's.
    with torch.no_grad():
        for master in deepspeed_masters.masters(engine, optimizer, names):
            master.fill(draw(master.name, master.shape, plan, seed, runtime.device))
    deepspeed_masters.publish(engine)
    return DeepSpeedEngine(
        engine,
        optimizer,
        objective,
        names=names,
        runtime=runtime,
        precision=precision,
        clip=clip,
        nominal_count=global_batch * seq_len,
    )


class DeepSpeedEngine:
    """See `engine.Engine`; the arithmetic is `TorchEngine`'s.

    DeepSpeed averages gradients over ranks and, by itself, over micro-batches. Here every micro-batch's loss is
    multiplied by ranks × loss scale / `nominal` and not divided by their number, so what the optimiser is handed
    is the sum of loss × loss scale / nominal; `FlatAdamW` then divides it by the true count, and clips. DeepSpeed's
    own clipping and loss scaling are off: they happen before the count is known, or do not know of it.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: FlatAdamW,
        objective: Objective,
        *,
        names: dict[str, str],
        runtime: Runtime,
        precision: str,
        clip: float,
        nominal_count: int,
    ) -> None:
        self._engine = engine
        self._optimizer = optimizer
        self._objective = objective
        self._names = names
        self._runtime = runtime
        self._clip = clip
        self._nominal = 2.0 ** round(math.log2(nominal_count))
        self._scale = LossScale() if precision == "fp16" else None
        self._grad_norm = math.inf

    @property
    def data_rank(self) -> int:
        return self._runtime.rank

    @property
    def data_ranks(self) -> int:
        return self._runtime.world

    @property
    def is_writer(self) -> bool:
        return self._runtime.is_writer

    # -- one step ------------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[Micro], *, lr: float, stop: bool = False) -> StepResult:
        """Forward, backward and update over the global batch; `batches` is this data rank's part of it.

        RuntimeError if the batch has no counted target, or (fp32, bf16) a gradient is not finite.
        """
        loss_scale = self._scale.value if self._scale else 1.0
        sums = self._accumulate(batches, loss_scale / self._nominal * self.data_ranks)
        loss_sum, count, asked = self._reduce(sums, stop)
        if count == 0:
            raise RuntimeError("no target in the global batch is counted: all are masked or padding")
        skipped = self._update(lr, self._nominal / (count * loss_scale))
        if self._scale:
            self._scale.update(skipped)
        elif skipped:
            raise RuntimeError(
                f"the gradient is not finite (loss {loss_sum / count:.4g}): nothing was updated; lower optim.lr"
            )
        return StepResult(loss_sum, count, self._grad_norm, skipped, asked > 0, loss_scale)

    def _accumulate(self, batches: Sequence[Micro], factor: float) -> Tensor:
        """Backward of factor × loss over the micro-batches, reduced at the last. This rank's (sum, count)."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._runtime.device)
        self._engine.train()
        for number, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            inputs = self._inputs(batch)
            loss, count = self._objective.loss(self._engine(inputs.x, **inputs.kwargs), inputs)
            self._engine.backward(loss * factor, scale_wrt_gas=False)
            sums.add_(torch.stack((loss.detach(), count)))
        return sums

    def _inputs(self, batch: Micro) -> ModelInputs:
        moved = batch.to(self._runtime.device)
        return self._objective.inputs(moved.tensors, moved.sequences)

    def _reduce(self, sums: Tensor, stop: bool = False) -> list[float]:
        packed = torch.cat((sums, sums.new_tensor([float(stop)])))
        dist.all_reduce(packed)
        return packed.tolist()

    def _update(self, lr: float, to_mean: float) -> bool:
        """The update with gradients × `to_mean`, clipped. Whether it was skipped: a gradient was not finite."""
        self._grad_norm = math.inf
        divisor: list[Tensor] = []

        def once() -> Tensor:  # DeepSpeed has the norm just before it calls the optimiser, once a group
            if not divisor:
                self._grad_norm = self._norm() * to_mean
                clip = min(1.0, self._clip / self._grad_norm) if self._clip > 0 and self._grad_norm > 0 else 1.0
                divisor.append(torch.tensor(1.0 / (to_mean * clip)))
            return divisor[0]

        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.divisor = once
        self._engine.step()
        self._optimizer.divisor = None
        skipped = not math.isfinite(self._grad_norm)
        self._optimizer.steps += not skipped
        return skipped

    def _norm(self) -> float:
        """Of the gradients as DeepSpeed holds them, over all ranks."""
        if self._engine.optimizer is not self._optimizer:
            return float(self._engine.optimizer._global_grad_norm)
        grads = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)).double()))

    # -- evaluation ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Micro]) -> tuple[float, float]:
        """(sum of losses, count) over the batches of all data ranks, which must give equally many."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._runtime.device)
        self._engine.eval()
        for batch in batches:
            inputs = self._inputs(batch)
            output = self._engine(inputs.x, **inputs.kwargs)
            sums.add_(torch.stack(self._objective.loss(output, inputs)))
        loss_sum, count, _ = self._reduce(sums)
        return loss_sum, count

    # -- state ---------------------------------------------------------------------------------------------------

    def chunks(self) -> list[Chunk]:
        """Master weights and optimiser state, as live memory: each rank's share, cut into boxes."""
        shares = deepspeed_masters.masters(self._engine, self._optimizer, self._names)
        return [chunk for share in shares for chunk in share.chunks()]

    def scalars(self) -> dict[str, Any]:
        """What is not a tensor: the optimiser's updates so far and fp16's loss scale."""
        return {"updates": self._optimizer.steps, **(self._scale.state() if self._scale else {})}

    def load(self, scalars: dict[str, Any]) -> None:
        """Take over after the chunks were filled."""
        self._optimizer.steps = int(scalars["updates"])
        if self._scale and "loss_scale" in scalars:
            self._scale.restore(scalars)
        deepspeed_masters.publish(self._engine)

    def close(self) -> None:
        """Let go of the model. The process group is the runtime's."""
        self._engine.destroy()
        self._engine = None
        deepspeed_start.release()
