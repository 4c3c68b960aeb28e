"""Fine-tuning as users of `transformers` and PEFT write it: a stock model, `get_peft_model`, `Trainer`."""

from __future__ import annotations

import io
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import SequentialSampler

from data.stream.batch import Batch
from data.stream.loader import Loader
from trainer.config.run_config import RunConfig
from trainer.huggingface import choose, peft_format
from trainer.models.pictures import pictures_of
from trainer.ranks import Ranks
from trainer.start.opening import open_stream
from tuned_tasks import LORA, Setting, Tuned

Row = dict[str, Tensor]


def stock_model(setting: Setting) -> Any:
    """Load the class of `transformers` from the base; add LoRA as PEFT does."""
    import transformers

    classes = {"num_labels": setting.classes} if setting.classes else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # a line for each layer of a task that is new
        model = getattr(transformers, setting.task.stock).from_pretrained(
            setting.base, attn_implementation="sdpa", dtype=torch.float32, **classes
        )
        logging.disable(logging.NOTSET)
    if not setting.lora:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=LORA["rank"],
            lora_alpha=LORA["alpha"],
            target_modules=list(setting.task.targets),
            modules_to_save=list(setting.task.saved) or None,
        ),
    )


@torch.no_grad()
def take_drawn(theirs: Any, tuned: Tuned) -> None:
    """Copy what a run draws anew into a stock model: the layers of the task, and LoRA's matrices A."""
    cfg, lora = tuned.run.cfg, tuned.setting.lora
    own = dict(tuned.model.named_parameters())
    there = {
        name.replace(".modules_to_save.default", "").replace(".default", ""): one
        for name, one in theirs.named_parameters()
    }
    mapped = choose.for_export(cfg.model, cfg.data.seq_len)[0].mapped(cfg.model)
    at, in_task = peft_format.PREFIX if lora else "", cfg.plan().in_task
    names = {one.ours: at + one.theirs for one in mapped if in_task(one.ours)}
    names |= {branch.a: branch.their_a for branch in peft_format.branches(mapped) if branch.a in own}
    for ours, name in names.items():
        there[name].copy_(own[ours])


def rows_of(batch: Batch, cfg: RunConfig) -> list[Row]:
    """The rows of a batch of ours, as a stock model takes them."""
    tensors = batch.tensors
    pictures = pictures_of(cfg.model)
    if pictures is not None:
        columns = {"image": tensors["image"][:, 0], "labels": tensors["label"]}
    elif "label" in tensors:
        seen = torch.arange(tensors["tokens"].shape[1]) < tensors["length"][:, None]
        columns = {"input_ids": tensors["tokens"], "attention_mask": seen.long(), "labels": tensors["label"]}
    else:
        following = tensors["following"].where(tensors["following"] >= 0, -100)
        # Their models shift labels themselves, unless these are given.
        columns = {"input_ids": tensors["tokens"], "labels": following, "shift_labels": following}
    return [{name: one[row] for name, one in columns.items()} for row in range(batch.rows)]


class Pictures(Sequence[Row]):
    """Rows of pictures in PNG, decoded and normalised when they are taken, as the run does."""

    def __init__(self, rows: Sequence[Row], mean: Sequence[float], std: Sequence[float]) -> None:
        self._labels = [row["labels"] for row in rows]
        self._files = [_png(row["image"]) for row in rows]
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, at: Any) -> Any:
        with Image.open(io.BytesIO(self._files[at])) as picture:
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        return {"pixel_values": (pixels - self._mean) / self._std, "labels": self._labels[at]}


def _png(pixels: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def training_rows(cfg: RunConfig) -> Sequence[Row]:
    """Every row that a run of `cfg` reads, in its order."""
    stream = open_stream(cfg, Ranks())
    batch = cfg.train.global_batch
    loader = Loader(stream, rank=0, ranks=1, global_batch=batch, micro_batch=batch)
    try:
        steps = (next(loader) for _ in range(cfg.train.steps))
        rows = [row for batches in steps for one in batches for row in rows_of(one, cfg)]
        return _taken(rows, cfg)
    finally:
        loader.close()


def _taken(rows: Sequence[Row], cfg: RunConfig) -> Sequence[Row]:
    """The rows as a stock model takes them: with pictures, decoded one at a time."""
    pictures = pictures_of(cfg.model)
    return rows if pictures is None else Pictures(rows, pictures.mean, pictures.std)


class GatedTrainer:
    """`Trainer.train` in a thread of its own, which is let through one step at a time.

    model: as `stock_model` gives it.
    rows: of all steps, in their order.
    before_update: called in each step once gradients are there.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row],
        setting: Setting,
        before_update: Callable[[], None] = lambda: None,
    ) -> None:
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        go, done = threading.Semaphore(0), threading.Semaphore(0)
        self.model, self._go, self._done = model, go, done
        self._losses: list[Tensor] = []
        losses = self._losses

        class Gate(TrainerCallback):
            def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                before_update()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                done.release()
                go.acquire()

        class InOrder(Trainer):
            def _get_train_sampler(self, *args: Any) -> Any:
                return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                loss: Any = super().compute_loss(*args, **kwargs)
                losses.append(loss.detach())
                return loss

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, use_cpu=True, max_steps=setting.steps, per_device_train_batch_size=setting.batch,
                learning_rate=setting.lr, lr_scheduler_type="linear", optim="adamw_torch_fused",
                adam_beta1=setting.betas[0], adam_beta2=setting.betas[1], adam_epsilon=1e-8,
                weight_decay=setting.weight_decay, max_grad_norm=setting.clip, save_strategy="no",
                report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
                remove_unused_columns=False, logging_steps=10,
            )  # fmt: skip
            trainer = InOrder(model, arguments, train_dataset=rows, callbacks=[Gate()])  # type: ignore[arg-type]
        trainer.remove_callback(PrinterCallback)
        self._failure: BaseException | None = None

        def train() -> None:
            go.acquire()
            try:
                trainer.train()
            except BaseException as error:
                self._failure = error
            done.release()

        self._thread = threading.Thread(target=train, daemon=True)
        self._thread.start()

    def step(self, number: int) -> float:
        """Train on the next rows; return the mean loss."""
        self._go.release()
        self._done.acquire()
        if self._failure is not None:
            raise self._failure
        return float(self._losses.pop())

    def finish(self) -> None:
        """Let the Trainer come to its end, once its last step is done."""
        self._go.release()
        self._thread.join()


@torch.no_grad()
def score(model: Any, tuned: Tuned) -> float:
    """The figure of our held-out rows: the share of right classes, or nats per token."""
    model.eval()
    total = count = 0.0
    for batch in tuned.heldout():
        real = [row for row, number in enumerate(batch.sequences) if number >= 0]
        every = _taken(rows_of(batch, tuned.run.cfg), tuned.run.cfg)
        rows = [every[row] for row in real]
        columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        labels = columns["labels"]
        found = model(**columns)
        if tuned.setting.task.figure == "loss":
            targets = int((labels >= 0).sum())
            total, count = total + float(found.loss) * targets, count + targets
        else:
            total += float((found.logits.argmax(dim=1) == labels).sum())
            count += len(labels)
    return total / count
