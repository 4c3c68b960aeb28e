"""The config of a run, as dataclasses. `reading` reads it, `checks` checks it. Imports no torch."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from common.model_plan import ModelPlan
from data.config import DataConfig
from parallel.config import ParallelConfig
from trainer.config.plain import plain
from trainer.config.sections import CheckpointConfig, OptimConfig, SuperviseConfig, TrackConfig, TrainConfig
from trainer.models.config import ModelConfig, init_from
from trainer.models.own import own_config
from trainer.models.pictures import pictures_of
from trainer.models.registry import MODELS
from trainer.models.tuned.config import FinetuneConfig
from trainer.models.tuned.plan import tuned_plan
from trainer.objectives.config import CausalLMConfig, ObjectiveConfig
from trainer.objectives.registry import OBJECTIVES


@dataclass
class RunConfig:
    """One run, whole. Read-only by convention once loaded."""

    name: Annotated[str, "of the run: letters, digits, . _ -; left out: the file's own"]
    model: ModelConfig = field(metadata={"kinds": MODELS, "own_kind": own_config})
    data: DataConfig
    objective: ObjectiveConfig = field(default_factory=CausalLMConfig, metadata={"kinds": OBJECTIVES})
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    supervise: SuperviseConfig = field(default_factory=SuperviseConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    seed: Annotated[int, "of the first weights and the order of the data"] = 0
    run_dir: Annotated[
        str,
        "the run folder, from the working directory; empty: runs/<name>, or where the config lies, if a run "
        "wrote it there",
    ] = ""

    @property
    def folder(self) -> Path:
        """The run folder: config.yaml, metrics.jsonl, checkpoints/ …"""
        return Path(self.run_dir)

    def plan(self) -> ModelPlan:
        """Return the plan of the model as it is trained: with what fine-tuning adds and freezes. ValueError
        where the model has no place for it.
        """
        return tuned_plan(self.model.plan(), self.finetune)

    @property
    def row_length(self) -> int:
        """The length of the model's rows; the objective may make them longer than those of the stream."""
        return self.objective.row_length(self.data.seq_len)

    @property
    def flops_per_row(self) -> float:
        """Floating-point operations of a row's forward and backward, of all views of a picture. The model's
        last part counts for the positions that it computes; what fine-tuning adds, and the layer of a task
        alone, are too small to count.
        """
        parts = self.model.training_flops(self.row_length)
        share = self.objective.positions_of_head(self.data.seq_len) / self.row_length
        views = 1 if pictures_of(self.model) is None else self.data.image_views
        return views * (parts.total - parts.last * (1 - share)) * PASSES[self.finetune.method] / 3


# Of forward, gradients of what each layer is given, and gradients of weights, which cost alike: how many a
# method of fine-tuning has.
PASSES = {"none": 3, "full": 3, "lora": 2, "adapters": 2, "probe": 1}

# What may differ between two runs of the same loss curve: law 1, and how the run is watched and kept.
OUTSIDE_CURVE = (
    *("name", "run_dir", "parallel", "checkpoint", "supervise", "track"),
    *(f"data.{key}" for key in ("ledger", "prefetch", "decode_threads", "cache_dir", "cache_bytes")),
    *(f"train.{key}" for key in ("micro_batch", "log_every", "threads", "ranks")),
    *(f"train.{key}" for key in ("eval_every", "eval_documents", "eval_overlap", "eval_bias")),
    *(f"finetune.{key}" for key in ("metric", "patience", "keep_best")),
)

# Keys that may differ between the ranks of one run: paths and caches of a node, and what only rank 0 reads.
OF_A_NODE = re.compile(
    r"name|run_dir|model\.init_from|track\..*|supervise\.notify|train\.threads|parallel\.nvme_path"
    r"|data\.(prefetch|decode_threads|cache_dir|cache_bytes)"
    r"|data\.(sources|heldout)\[\d+\]\.path"
)


def settings(cfg: RunConfig) -> dict[str, Any]:
    """Return dotted key → value of what shapes the loss curve besides model and seed: equal for two layouts
    of one run.
    """
    values = plain(cfg)
    found = {
        f"{section}.{name}": value
        for section, names in values.items()
        if section not in (*OUTSIDE_CURVE, "model") and isinstance(names, dict)
        for name, value in names.items()
    }
    if begins_from := init_from(cfg.model):
        found["model.init_from"] = begins_from
    return {key: value for key, value in found.items() if key not in OUTSIDE_CURVE}
