"""Loops over torch alone: our engine, bare `fully_shard`, and nanoGPT's loop."""

from typing import Any

from contenders.task import (
    BETAS,
    CLIP,
    CPU,
    DECAY,
    LR,
    MICRO_BATCHES,
    MODEL,
    ROWS,
    SEQ,
    Data,
    Place,
    make_model,
    make_optimizer,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from data.stream.batch import Batch
from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from parallel.world.runtime import Runtime
from trainer.config.sections import OptimConfig
from trainer.models.decoder.decoder import Decoder
from trainer.objectives.causal_lm import CausalLM
from trainer.optim.build import build_optimizer


class Germinal:
    """Our engine, as the training loop calls it."""

    def __init__(self, place: Place, **parallel: Any) -> None:
        cfg = ParallelConfig(**parallel)
        self._data = Data(place)
        self._engine = build_engine(
            layout=resolve(cfg, place.ranks), cfg=cfg,
            runtime=Runtime(place.rank, place.ranks, place.rank, CPU),
            plan=MODEL.plan(), model_factory=lambda: Decoder(MODEL), objective=CausalLM(),
            optimizer_factory=lambda parameters: build_optimizer(
                parameters, OptimConfig(lr=LR, betas=list(BETAS), weight_decay=DECAY),
                MODEL.plan(),
            ),
            precision="fp32", clip=CLIP, seed=0, micro_batch=ROWS,
            global_batch=place.ranks * ROWS * MICRO_BATCHES, positions=SEQ,
            nominal_count=place.ranks * ROWS * MICRO_BATCHES * SEQ,
        )  # fmt: skip

    def step(self, number: int) -> float:
        batches = [
            Batch({"tokens": x, "following": y}, tuple(range(ROWS))) for x, y in self._data.step(number)
        ]
        result = self._engine.step(batches, lr=LR)
        return result.loss_sum / result.count


class FullyShard:
    """The bare loop: torch's FSDP2, its clipping, fused AdamW."""

    def __init__(self, place: Place, *, zero: int) -> None:
        self._zero, self._data, self._place = zero, Data(place), place
        self._model = make_model()
        for part in (self._model.embed, *self._model.layers.values()):
            fully_shard(part, reshard_after_forward=zero == 3)
        fully_shard([self._model.norm, self._model.head], reshard_after_forward=False)
        fully_shard(self._model, reshard_after_forward=False)
        for module in self._model.modules():
            if isinstance(module, FSDPModule):  # sums, as ours: gloo does not average
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self._optimizer = make_optimizer(self._model)

    def step(self, number: int) -> float:
        model: Any = self._model
        total = 0.0
        for micro, (tokens, targets) in enumerate(self._data.step(number)):
            last = micro == MICRO_BATCHES - 1
            model.set_requires_gradient_sync(last or self._zero >= 2)
            model.set_reshard_after_backward(last or self._zero == 3)
            loss = model(tokens, targets=targets).sum() / (
                self._place.ranks * targets.numel() * MICRO_BATCHES
            )
            loss.backward()
            total += loss.item() * self._place.ranks
        clip_grad_norm_(model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total


class NanoGPT:
    """After nanoGPT's train.py: DDP that reduces at the last micro-batch, clipping, fused AdamW."""

    def __init__(self, place: Place) -> None:
        self._data = Data(place)
        self._model: nn.Module = make_model()
        self._optimizer = make_optimizer(self._model)
        self._ddp = place.ranks > 1
        if self._ddp:
            self._model = DistributedDataParallel(self._model, gradient_as_bucket_view=True)

    def step(self, number: int) -> float:
        total = 0.0
        for micro, (tokens, targets) in enumerate(self._data.step(number)):
            if self._ddp:
                self._model.require_backward_grad_sync = micro == MICRO_BATCHES - 1  # type: ignore[assignment]
            loss = self._model(tokens, targets=targets).sum() / targets.numel() / MICRO_BATCHES
            loss.backward()
            total += loss.item()
        clip_grad_norm_(self._model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total
