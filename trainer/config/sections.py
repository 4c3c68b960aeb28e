"""The sections of a run's config that are the trainer's own. Plain dataclasses; imports no torch.

A field states its key's meaning and limits in plain text; `trainer.config.keys` says how, and checks them.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from common.precision import Precision

Optimizer = Literal["adamw", "muon"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
StateType = Literal["fp32", "bf16"]
Float8 = Literal["none", "tensorwise", "rowwise"]
# jsonl is always written; the others are Accelerate's trackers by their names there.
Tool = Literal["jsonl", "wandb", "tensorboard", "mlflow", "comet_ml", "aim", "clearml", "swanlab", "trackio"]


@dataclass
class OptimConfig:
    """The optimiser and its learning rate over the run."""

    name: Annotated[
        Optimizer,
        "muon: hidden matrices by Muon, the rest by AdamW",
        "needs parallel.engine=torch (DeepSpeed flattens matrices)",
    ] = "adamw"
    # The bounds of rates, weight_decay, eps and clip are float32's, in which they are used: beyond, they are
    # 0 or infinite.
    lr: Annotated[float, "the highest learning rate", "> 0", "≥ 1.2e-38", "≤ 3.4e38"] = 1.0e-3
    schedule: Annotated[
        Schedule, "how the rate falls after warm-up; wsd: it is held, then falls linearly over decay_fraction"
    ] = "wsd"
    warmup_steps: Annotated[int, "linear rise to lr", "≥ 0", "in steps"] = 0
    decay_fraction: Annotated[float, "wsd: the share of the run over which the rate falls", "≥ 0", "≤ 1"] = (
        0.2
    )
    min_lr_ratio: Annotated[float, "the rate at the end, as a share of lr", "≥ 0", "≤ 1"] = 0.0
    weight_decay: Annotated[
        float,
        "decoupled; one-dimensional parameters, such as norms, have none",
        "≥ 0",
        "0 or ≥ 1.2e-38",
        "≤ 3.4e38",
    ] = 0.1
    betas: Annotated[list[float], "AdamW's decay of the two moments", "2 values", "≥ 0", "< 1"] = field(
        default_factory=lambda: [0.9, 0.95]
    )
    eps: Annotated[float, "AdamW: added to the root of the second moment", "> 0", "≥ 1.2e-38", "≤ 3.4e38"] = (
        1.0e-8
    )
    momentum: Annotated[float, "muon only", "≥ 0", "< 1"] = 0.95
    adamw_lr: Annotated[
        float,
        "beside muon: the highest rate of what AdamW updates; 0: lr",
        "≥ 0",
        "0 or ≥ 1.2e-38",
        "≤ 3.4e38",
    ] = 0.0
    clip: Annotated[
        float, "the largest global gradient norm; 0: no clipping", "≥ 0", "0 or ≥ 1.2e-38", "≤ 3.4e38"
    ] = 1.0
    state_dtype: Annotated[
        StateType,
        "of the moments; bf16 halves them, rounded stochastically",
        "needs parallel.engine=torch",
    ] = "fp32"


@dataclass
class TrainConfig:
    """How long, in what batches, in what precision. Batches are counted in sequences."""

    steps: Annotated[int, "optimiser steps in all, those before a resume included", "≥ 1", "in steps"] = 300
    global_batch: Annotated[
        int,
        "a step's, over all ranks: a multiple of micro_batch · data ranks",
        "≥ 1",
        "in sequences",
    ] = 32
    micro_batch: Annotated[int, "what a rank handles at once", "≥ 1", "in sequences"] = 8
    precision: Annotated[Precision, "of forward and backward; parameters and optimiser state stay fp32"] = (
        "fp32"
    )
    fp8: Annotated[
        Float8,
        "matrix products inside blocks in 8 bits, with one scale a tensor or a row; on a GPU from Hopper on",
        "needs train.precision=bf16 (what is not in fp8)",
        "needs parallel.engine=torch",
    ] = "none"
    eval_every: Annotated[
        int,
        "between evaluations on data.heldout, besides the one at the end; 0: only that",
        "≥ 0",
        "in steps",
        "needs data.heldout",
    ] = 0
    eval_documents: Annotated[
        int, "what an evaluation reads of each held-out set; 0: all", "≥ 0", "in documents"
    ] = 0
    eval_overlap: Annotated[
        int,
        "context that a later window of a held-out document begins with, not counted again",
        "≥ 0",
        "< data.seq_len",
        "in tokens",
    ] = 0
    eval_bias: Annotated[
        list[str],
        "files of paired sentences that differ in one term: each evaluation tells the difference of their "
        "log-likelihoods",
        "needs data.heldout",
    ] = field(default_factory=list)
    ranks: Annotated[
        list[int],
        "the fewest and the most ranks that a start may have, such as [2, 4]; none: any number that fits",
        "≥ 1",
    ] = field(default_factory=list)
    log_every: Annotated[int, "between lines of metrics.jsonl", "≥ 1", "in steps"] = 1
    # torch ends in a segmentation fault where the system refuses it a thread
    threads: Annotated[
        int,
        "CPU threads a rank computes with; 0: the free cores shared out",
        "≥ 0",
        "≤ 1024",
        "in threads",
    ] = 0


@dataclass
class CheckpointConfig:
    """When the run's state is saved; it is always saved at the end and when the run is asked to stop."""

    every: Annotated[int, "between checkpoints; 0: only at the end", "≥ 0", "in steps"] = 100
    keep: Annotated[
        int,
        "verified ones that are kept: the newest, and with wsd also the last before the decay",
        "≥ 1",
        "in checkpoints",
    ] = 3
    keep_every: Annotated[
        int, "between ones that are never deleted, saved whatever `every` is; 0: none", "≥ 0", "in steps"
    ] = 0
    asynchronous: Annotated[bool, "copy the state, train on, and write meanwhile"] = field(
        default=True, metadata={"key": "async"}
    )


@dataclass
class SuperviseConfig:
    """When a rank counts as hanging, how often ranks are started again, and who is told."""

    hang_factor: Annotated[
        float,
        "a phase (step, part of an evaluation, save) hangs that lasts this many times its median",
        "> 1",
    ] = 10.0
    hang_seconds: Annotated[float, "a phase never counts as hanging sooner", "> 0", "in seconds"] = 120.0
    first_seconds: Annotated[
        float,
        "what a piece of the start, compilation, and the first three of each phase may last, which have no "
        "median yet; above 1800 also how long a save waits for the other ranks' files",
        "> 0",
        "in seconds",
    ] = 1800.0
    restarts: Annotated[
        int,
        "how often ranks that failed are started again without a new checkpoint in between; 0: never",
        "≥ 0",
    ] = 3
    notify: Annotated[
        str,
        "told of every fault, restart and end: an http(s) URL that gets a JSON document, or a command that "
        "gets one on its standard input",
    ] = ""


@dataclass
class TrackConfig:
    """Where metrics go besides metrics.jsonl. A key that is set wins over wandb's own variable."""

    tools: Annotated[
        list[Tool], "jsonl, which is always written, and experiment trackers, each imported only here"
    ] = field(default_factory=lambda: ["jsonl"])
    project: Annotated[
        str, "wandb's project (else WANDB_PROJECT, else germinal), or the experiment of another tracker"
    ] = ""
    entity: Annotated[str, "wandb's user or team; else WANDB_ENTITY"] = ""
    group: Annotated[str, "what wandb groups runs by; else WANDB_RUN_GROUP"] = ""
    tags: Annotated[list[str], "of the run in wandb; else WANDB_TAGS"] = field(default_factory=list)
    notes: Annotated[str, "on the run, in wandb; else WANDB_NOTES"] = ""
    samples: Annotated[
        list[str],
        "prompts that each checkpoint continues into samples.jsonl, beside training; none: no samples",
    ] = field(default_factory=list)
    sample_tokens: Annotated[int, "what a sample continues its prompt by, at most", "≥ 1", "in tokens"] = 64
