"""Loops of one small model as users of Accelerate, Hugging Face's Trainer and DeepSpeed write them."""

import tempfile
import threading
from typing import Any

import torch
from contenders.task import (
    CLIP,
    MICRO_BATCHES,
    POOL,
    ROWS,
    Data,
    Place,
    make_model,
    make_optimizer,
    sequences,
)
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler


class WithAccelerate:
    """The loop of Accelerate's guide to gradient accumulation."""

    def __init__(self, place: Place) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        self._data = Data(place)
        self._accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=MICRO_BATCHES,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        model = make_model()
        self._model, self._optimizer = self._accelerator.prepare(model, make_optimizer(model))

    def step(self, number: int) -> float:
        total = 0.0
        for tokens, targets in self._data.step(number):
            with self._accelerator.accumulate(self._model):
                loss = self._model(tokens, targets=targets).sum() / targets.numel()
                self._accelerator.backward(loss)
                if self._accelerator.sync_gradients:
                    self._accelerator.clip_grad_norm_(self._model.parameters(), CLIP)
                self._optimizer.step()
                self._optimizer.zero_grad()
            total += loss.item() / MICRO_BATCHES
        return total


class WithLoss(nn.Module):
    """The model with the interface that the Trainer needs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()
        self.seen: list[Tensor] = []

    def forward(self, tokens: Tensor, targets: Tensor) -> dict[str, Tensor]:
        loss = self.model(tokens, targets=targets).sum() / targets.numel()
        self.seen.append(loss.detach())
        return {"loss": loss}


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self._pool = sequences()

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        row = self._pool[number % POOL]
        return {"tokens": row[:-1], "targets": row[1:]}


class HuggingFace:
    """`Trainer.train` in a thread of its own, which is let through one step at a time."""

    def __init__(self, place: Place) -> None:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        go, done = threading.Semaphore(0), threading.Semaphore(0)
        self._go, self._done = go, done

        class Gate(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                done.release()
                go.acquire()

        class InOrder(Trainer):
            def _get_train_sampler(self, *args: Any) -> Any:
                return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

        self._model = WithLoss()
        optimizer = make_optimizer(self._model)
        folder = tempfile.mkdtemp()
        trainer = InOrder(
            self._model,
            TrainingArguments(
                folder, use_cpu=True, max_steps=100_000, per_device_train_batch_size=ROWS,
                gradient_accumulation_steps=MICRO_BATCHES, max_grad_norm=CLIP, save_strategy="no",
                report_to=[], disable_tqdm=True, ddp_find_unused_parameters=False,
                dataloader_pin_memory=False, remove_unused_columns=False,
            ),
            train_dataset=Rows(),
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
            callbacks=[Gate()],
        )  # fmt: skip
        self._failure: BaseException | None = None

        def train() -> None:
            go.acquire()
            try:
                trainer.train()
            except BaseException as error:
                self._failure = error
                done.release()

        threading.Thread(target=train, daemon=True).start()

    def step(self, number: int) -> float:
        self._go.release()
        self._done.acquire()
        if self._failure is not None:
            raise self._failure
        losses, self._model.seen[:] = list(self._model.seen), []
        return sum(map(float, losses)) / len(losses)


class DeepSpeed:
    """DeepSpeed by itself, as its getting-started page has it."""

    def __init__(self, place: Place, *, zero: int) -> None:
        import deepspeed

        self._data = Data(place)
        model = make_model()
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(model),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": ROWS,
                "gradient_accumulation_steps": MICRO_BATCHES,
                "gradient_clipping": CLIP,
                "steps_per_print": 1_000_000,
                "zero_optimization": {"stage": zero},
            },
        )

    def step(self, number: int) -> float:
        total = 0.0
        for tokens, targets in self._data.step(number):
            loss = self._engine(tokens, targets=targets).sum() / targets.numel()
            self._engine.backward(loss)
            self._engine.step()
            total += loss.item() / MICRO_BATCHES
        return total
