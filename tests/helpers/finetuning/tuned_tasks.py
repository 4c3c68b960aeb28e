"""Tasks that are fine-tuned here and with `transformers`: the same first weights, rows and settings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from data.stream.batch import Batch
from parallel.torch_engine.engine import TorchEngine
from parallel.world import runtime as runtimes
from trainer.config import reading
from trainer.loop import take_step
from trainer.optim.schedule import learning_rate
from trainer.run import Run, assemble

Sections = dict[str, dict[str, Any]]

LORA: dict[str, Any] = {"method": "lora", "rank": 4, "alpha": 8.0, "targets": ["all"]}
"""Of our config; `Task.targets` are the same layers for PEFT."""


@dataclass(frozen=True)
class Task:
    """One task.

    stock: the class of `transformers` that is trained.
    model, objective, data: sections of our config.
    targets: the linear layers of the blocks, as PEFT names them.
    saved: the layers of the task, as PEFT's `modules_to_save`.
    figure: what the score is, a figure of our evaluation.
    """

    stock: str
    model: dict[str, Any]
    objective: dict[str, Any]
    data: dict[str, Any]
    targets: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    figure: str = "top_1"


BERT = Task(
    "BertForSequenceClassification",
    {"kind": "text_classes", "pool": "first", "head_layer": "tanh"},
    {"kind": "classification"},
    {"packing": "one"},
    ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"),
    ("classifier", "pooler"),
)
LLAMA = Task(
    "LlamaForCausalLM",
    {},
    {"kind": "causal_lm"},
    {"document_mask": False},
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    figure="loss",
)
VIT = Task("ViTForImageClassification", {}, {"kind": "classification"}, {"packing": "one"})
TASKS = {"bert": BERT, "llama": LLAMA, "vit": VIT}


@dataclass(frozen=True)
class Setting:
    """One fine-tuning of a task.

    task: what is trained.
    base: a Hugging Face folder.
    corpus: has train and heldout.
    lora: LoRA beside all linear layers of the blocks; else every parameter is trained.
    seq_len, image_size, classes: of the rows and the task.
    lr, weight_decay, clip, steps, batch: hyper-parameters. The rate falls linearly to 0.
    """

    task: Task
    base: Path
    corpus: Path
    lora: bool
    lr: float
    steps: int
    batch: int
    seq_len: int = 1
    image_size: int = 0
    classes: int = 0
    seed: int = 0
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    train: dict[str, Any] = field(default_factory=dict)


def write(setting: Setting, folder: Path) -> Path:
    """Write our config of a setting; its run is folder/run."""
    task, corpus = setting.task, setting.corpus
    classes = {"classes": setting.classes} if setting.classes else {}
    images = {"image_size": setting.image_size} if setting.image_size else {}
    sections = {
        "name": "run",
        "run_dir": str(folder / "run"),
        "seed": setting.seed,
        "model": {"init_from": str(setting.base), **task.model, **classes},
        "objective": task.objective,
        "finetune": LORA if setting.lora else {"method": "full"},
        "data": {
            "sources": [{"path": str(corpus / "train")}],
            "heldout": [{"path": str(corpus / "heldout"), "name": "held"}],
            "seq_len": setting.seq_len,
            **task.data,
            **images,
        },
        "optim": {
            "lr": setting.lr,
            "schedule": "linear",
            "weight_decay": setting.weight_decay,
            "clip": setting.clip,
            "betas": list(setting.betas),
        },
        "train": {
            "steps": setting.steps,
            "global_batch": setting.batch,
            "micro_batch": setting.batch,
            "eval_documents": 0,
            **setting.train,
        },
        "checkpoint": {"every": 10**6},
        "track": {"tools": ["jsonl"]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "finetune.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


class Tuned:
    """A run of `germinal finetune` in this process, one step at a time."""

    def __init__(self, setting: Setting, folder: Path, stack: ExitStack) -> None:
        self.setting = setting
        cfg = reading.load(write(setting, folder))
        self.run: Run = assemble(cfg, runtimes.start(env={"OMP_NUM_THREADS": "1"}), stack)
        engine = self.run.engine
        assert isinstance(engine, TorchEngine)
        self.engine = engine

    @property
    def model(self) -> nn.Module:
        return self.engine.stages[0]

    def step(self, number: int) -> float:
        """Read the next step's rows, train on them, record the step; return the mean loss."""
        run, cfg = self.run, self.run.cfg
        batches: Sequence[Batch] = next(run.steps)
        lr = learning_rate(run.state.step, cfg.optim, cfg.train.steps)
        result = take_step(run.engine, run.steps, batches, run.state, cfg, lr=lr, stop=False)
        run.meter.step(run.state, result, lr=lr, micro_batches=batches)
        return result.loss_sum / result.count

    def score(self) -> float:
        """The figure of the held-out set."""
        found = self.run.evaluator(self.run.engine)
        assert found is not None
        return found["held"].record()[self.setting.task.figure]

    def heldout(self) -> list[Batch]:
        return list(self.run.evaluator.sets[0])
