"""Training loops of one small model, as users of each library write them, for `step_time.py`.

All train `MODEL` from the same first weights on the same sequences, with fused AdamW and the gradient clipped
by its norm; a step is MICRO_BATCHES micro-batches of ROWS sequences a rank.
"""

import tempfile
import threading
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import Dataset, SequentialSampler

from data.stream.batch import Batch
from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from parallel.parameters.initialize import draw
from parallel.world.runtime import Runtime
from trainer.config.sections import OptimConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder
from trainer.objectives.causal_lm import CausalLM
from trainer.optim.updates import build_optimizer

MODEL = DecoderConfig(layers=6, hidden=256, heads=4, kv_heads=4, ffn_hidden=768, vocab=4096)
SEQ, ROWS, MICRO_BATCHES = 256, 1, 2  # rows of a micro-batch, micro-batches of a rank's step
POOL = 64  # different sequences
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    rank: int
    ranks: int

    def rows(self, step: int) -> list[range]:
        """Global numbers of the sequences in this rank's micro-batches of a step."""
        micros = [(step * MICRO_BATCHES + m) * self.ranks + self.rank for m in range(MICRO_BATCHES)]
        return [range(micro * ROWS, (micro + 1) * ROWS) for micro in micros]


class Contender(Protocol):
    """`step` trains on the step's global batch and returns the loss as the loop knows it."""

    def step(self, number: int) -> float: ...


def sequences() -> Tensor:
    return torch.randint(MODEL.vocab, (POOL, SEQ + 1), generator=torch.Generator().manual_seed(0))


class Data:
    """What a rank reads, in memory."""

    def __init__(self, place: Place) -> None:
        self._place, self._pool = place, sequences()

    def step(self, number: int) -> list[tuple[Tensor, Tensor]]:
        """(tokens, targets) of each micro-batch, [ROWS, SEQ]."""
        rows = [self._pool[[n % POOL for n in numbers]] for numbers in self._place.rows(number)]
        return [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]


@torch.no_grad()
def make_model() -> Decoder:
    model = Decoder(MODEL)
    for name, parameter in model.named_parameters():
        parameter.copy_(draw(name, tuple(parameter.shape), MODEL.plan(), 0, CPU))
    return model


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)


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
                no_decay=lambda _, shape: len(shape) == 1, hidden_matrix=lambda *_: False,
            ),
            precision="fp32", clip=CLIP, seed=0, micro_batch=ROWS,
            global_batch=place.ranks * ROWS * MICRO_BATCHES, seq_len=SEQ,
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
    """The interface that the Trainer asks of a model."""

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
