"""The config of a run: one dataclass a section, read from YAML and `key=value`. Imports no torch.

`load` and `layout` are all that a caller needs. Meaning, unit and default of a key are stated at its field.
What several keys must agree on is checked in `check` and `layout`, before anything expensive starts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.config import DataConfig
from data.config import check as check_data
from parallel.config import ParallelConfig
from parallel.plan import Layout, check_batch, check_model, resolve
from trainer import schema
from trainer.models.config import DecoderConfig

Optimizer = Literal["adamw", "muon"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
StateType = Literal["fp32", "bf16"]
Precision = Literal["fp32", "bf16", "fp16"]
Float8 = Literal["none", "tensorwise", "rowwise"]
# jsonl is always written; the others are Accelerate's trackers by their names there.
Tool = Literal["jsonl", "wandb", "tensorboard", "mlflow", "comet_ml", "aim", "clearml", "swanlab", "trackio"]


@dataclass
class ObjectiveConfig:
    """What is minimised."""

    kind: str = "causal_lm"


@dataclass
class OptimConfig:
    """The optimiser and its learning rate over the run."""

    name: Optimizer = "adamw"  # muon: hidden matrices by Muon, the rest by AdamW
    lr: float = 1.0e-3  # the highest rate
    schedule: Schedule = "wsd"  # wsd: warm-up, stable, decay
    warmup_steps: int = 0  # steps of linear rise to lr
    decay_fraction: float = 0.2  # wsd: the share of the run over which the rate falls
    min_lr_ratio: float = 0.0  # the rate at the end, as a share of lr
    weight_decay: float = 0.1  # decoupled; norms and other one-dimensional parameters have none
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1.0e-8
    momentum: float = 0.95  # muon only
    adamw_lr: float = 0.0  # beside muon: the highest rate of what AdamW updates; 0: lr
    clip: float = 1.0  # the largest global gradient norm; 0: no clipping
    state_dtype: StateType = "fp32"  # of the moments; bf16 halves them, rounded stochastically


@dataclass
class TrainConfig:
    """How long, in what batches, in what precision. Batches are counted in sequences."""

    steps: int = 300  # optimiser steps in all, those before a resume included
    global_batch: int = 32  # sequences a step, over all ranks and micro-batches
    micro_batch: int = 8  # sequences a rank handles at once
    precision: Precision = "fp32"  # of forward and backward; parameters and optimiser state stay fp32
    fp8: Float8 = "none"  # matrix products inside blocks in 8 bits, one scale a tensor or a row; Hopper, bf16
    eval_every: int = 0  # steps between evaluations on data.heldout, and at the end; 0: never
    eval_documents: int = 0  # held-out documents an evaluation reads of each set; 0: all
    eval_overlap: int = (
        0  # tokens of context a later window of a held-out document begins with, not counted again
    )
    log_every: int = 1  # steps between lines of metrics.jsonl
    threads: int = 0  # CPU threads a rank computes with; 0: the machine's cores shared out


@dataclass
class CheckpointConfig:
    """When the run's state is saved; it is always saved at the end and when the run is asked to stop."""

    every: int = 100  # steps between checkpoints; 0: only at the end
    keep: int = 3  # verified checkpoints kept, the newest ones
    # `async:` in YAML: copy the state, train on, write meanwhile.
    asynchronous: bool = field(default=True, metadata={"key": "async"})


@dataclass
class TrackConfig:
    """Where metrics go besides metrics.jsonl."""

    tools: list[Tool] = field(default_factory=lambda: ["jsonl"])


# `kind` → the dataclass of its keys; without a kind, the first.
MODELS: dict[str, Any] = {"decoder": DecoderConfig}
OBJECTIVES: dict[str, Any] = {"causal_lm": ObjectiveConfig}


@dataclass
class RunConfig:
    """One run, whole. Read-only by convention once loaded."""

    name: str
    model: DecoderConfig = field(metadata={"kinds": MODELS})
    data: DataConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig, metadata={"kinds": OBJECTIVES})
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    seed: int = 0
    run_dir: str = ""  # empty: runs/<name>

    @property
    def folder(self) -> Path:
        """The run folder: config.yaml, metrics.jsonl, checkpoints/ …"""
        return Path(self.run_dir)


MOST_THREADS = 1024  # torch ends in a segmentation fault where the system refuses it a thread

# What may differ between two runs of the same loss curve: law 1, and how the run is watched and kept.
OUTSIDE_CURVE = (
    *("name", "run_dir", "parallel", "checkpoint", "track"),
    *(f"data.{key}" for key in ("ledger", "prefetch", "cache_dir", "cache_bytes")),
    *(
        f"train.{key}"
        for key in ("micro_batch", "eval_every", "eval_documents", "eval_overlap", "log_every", "threads")
    ),
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that the file `path` and each `key=value` describe, checked as far as can be without torch.

    `name` defaults to the file's own, `run_dir` to `runs/<name>`.

    Raises:
        ValueError: one line with the key, its value and the nearest right key or what is wrong with it.
    """
    values = schema.read(path, overrides)
    values.setdefault("name", Path(path).stem)
    cfg: RunConfig = schema.build(RunConfig, values, known=schema.dotted_keys(RunConfig))
    cfg.run_dir = cfg.run_dir or f"runs/{cfg.name}"
    check(cfg)
    return cfg


def dump(cfg: RunConfig) -> str:
    """The config as YAML with every default written out; `load` reads it back to an equal config."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(schema.plain(cfg)))


def settings(cfg: RunConfig) -> dict[str, Any]:
    """Dotted key → value of what shapes the loss curve besides model and seed: equal for two layouts of one
    run.
    """
    values = schema.plain(cfg)
    found = {
        f"{section}.{name}": value
        for section, names in values.items()
        if section not in (*OUTSIDE_CURVE, "model") and isinstance(names, dict)
        for name, value in names.items()
    }
    return {key: value for key, value in found.items() if key not in OUTSIDE_CURVE}


def check(cfg: RunConfig) -> None:
    """What fields and sections must agree on, layout aside (`parallel.plan.resolve` knows that).

    Raises:
        ValueError: one line with the key and its value.
    """
    train, optim = cfg.train, cfg.optim
    cfg.model.check()
    check_data(cfg.data)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cfg.name):
        raise ValueError(f"name={cfg.name!r}: not a plain folder name (letters, digits, . _ -)")
    for section, keys in (
        ("train", ("steps", "global_batch", "micro_batch", "log_every")),
        ("checkpoint", ("keep",)),
    ):
        for key in keys:
            _at_least(f"{section}.{key}", getattr(getattr(cfg, section), key), 1)
    for key in ("eval_every", "eval_documents", "eval_overlap", "threads"):
        _at_least(f"train.{key}", getattr(train, key), 0)
    if train.threads > MOST_THREADS:
        raise ValueError(f"train.threads={train.threads}: at most {MOST_THREADS}; 0 shares the cores out")
    _at_least("checkpoint.every", cfg.checkpoint.every, 0)
    for key in ("warmup_steps", "weight_decay", "clip", "adamw_lr"):
        _at_least(f"optim.{key}", getattr(optim, key), 0)
    for key, positive in (("lr", optim.lr), ("eps", optim.eps)):
        if positive <= 0:
            raise ValueError(f"optim.{key}={positive:g}: must be above 0")
    for key, share in (("decay_fraction", optim.decay_fraction), ("min_lr_ratio", optim.min_lr_ratio)):
        if not 0 <= share <= 1:
            raise ValueError(f"optim.{key}={share:g}: must be between 0 and 1")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in (*optim.betas, optim.momentum)):
        raise ValueError(
            f"optim.betas={optim.betas}, optim.momentum={optim.momentum:g}: two betas, each in [0, 1)"
        )

    if cfg.parallel.engine == "deepspeed":
        for key, value, default in (
            ("optim.name", optim.name, "adamw"),
            ("optim.state_dtype", optim.state_dtype, "fp32"),
            ("train.fp8", train.fp8, "none"),
        ):
            if value != default:
                raise ValueError(
                    f"{key}={value} is not for parallel.engine=deepspeed: use parallel.engine=torch"
                )
    if train.fp8 != "none" and train.precision != "bf16":
        raise ValueError(f"train.fp8={train.fp8}: what is not in fp8 is in bf16: set train.precision=bf16")

    whole, rest = divmod(train.global_batch, train.micro_batch)
    if rest:
        raise ValueError(
            f"train.global_batch={train.global_batch}: not a multiple of "
            f"train.micro_batch={train.micro_batch}: {whole}·{train.micro_batch} + {rest}"
        )
    if train.global_batch * (cfg.data.seq_len + 1) not in schema.INT64:
        raise ValueError(
            f"train.global_batch={train.global_batch}, data.seq_len={cfg.data.seq_len}: more tokens "
            "in a step than 64 bits count"
        )
    if train.eval_overlap >= cfg.data.seq_len:
        raise ValueError(
            f"train.eval_overlap={train.eval_overlap}: must be below data.seq_len={cfg.data.seq_len}, for "
            "a window is context and what is counted"
        )
    if train.eval_every and not cfg.data.heldout:
        raise ValueError(f"train.eval_every={train.eval_every}: data.heldout names no corpus to evaluate on")


def layout(cfg: RunConfig, world: int) -> Layout:
    """The layout of the run on `world` ranks, with the model and the batch known to divide as it says.

    Raises:
        ValueError: one line with the arithmetic that fails.
    """
    found = resolve(cfg.parallel, world)
    model = cfg.model
    check_model(
        found,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.key_value_heads,
        ffn_hidden=model.ffn_width,
        vocab=model.vocab,
        cut=cfg.parallel.cut,
    )
    check_batch(
        found,
        global_batch=cfg.train.global_batch,
        micro_batch=cfg.train.micro_batch,
        seq_len=cfg.data.seq_len,
    )
    return found


def _at_least(key: str, value: float, least: int) -> None:
    if value < least:
        raise ValueError(f"{key}={value:g}: must be {f'at least {least}' if least else '0 or more'}")
