"""The config of a run, read from YAML and `key=value`. Imports no torch.

`load` and `layout` are all that a caller needs. Each field states its key's meaning, unit, limits and what it
may not be combined with; `keys` describes the notation, and checks them. Arithmetic over several keys is
checked in `check` and `layout`. All of it happens before anything expensive starts.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from data.config import DataConfig
from data.config import check as check_data
from parallel.config import ParallelConfig
from parallel.layout.layout import Layout, check_batch, check_stages, resolve
from trainer.config import keys, schema
from trainer.config.sections import CheckpointConfig, OptimConfig, TrackConfig, TrainConfig
from trainer.folder import run_folder
from trainer.models.config import ModelConfig
from trainer.models.registry import MODELS
from trainer.objectives.config import OBJECTIVES, CausalLMConfig, ObjectiveConfig


@dataclass
class RunConfig:
    """One run, whole. Read-only by convention once loaded."""

    name: Annotated[str, "of the run: letters, digits, . _ -; left out: the file's own"]
    model: ModelConfig = field(metadata={"kinds": MODELS})
    data: DataConfig
    objective: ObjectiveConfig = field(default_factory=CausalLMConfig, metadata={"kinds": OBJECTIVES})
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
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


# What may differ between two runs of the same loss curve: law 1, and how the run is watched and kept.
OUTSIDE_CURVE = (
    *("name", "run_dir", "parallel", "checkpoint", "track"),
    *(f"data.{key}" for key in ("ledger", "prefetch", "cache_dir", "cache_bytes")),
    *(
        f"train.{key}"
        for key in ("micro_batch", "eval_every", "eval_documents", "eval_overlap", "log_every", "threads")
    ),
)

# Keys that may differ between the ranks of one run: paths and caches of a node, and what only rank 0 reads.
OF_A_NODE = re.compile(
    r"name|run_dir|track\..*|train\.threads|parallel\.nvme_path|data\.(prefetch|cache_dir|cache_bytes)"
    r"|data\.(sources|heldout)\[\d+\]\.path"
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run that the file `path` and each `key=value` describe, checked as far as possible without
    torch.

    `name` defaults to the file's own, `run_dir` to `runs/<name>`. Neither is taken from a `base:`, for
    another file is another run. A config that a run wrote into its folder stands for that folder, wherever it
    is now, unless an override sets `run_dir` or `name`; `path` may be the folder itself. Other relative paths
    are relative to the working directory.

    Raises:
        ValueError: one line with the key, its value and the nearest right key or what is wrong with it.
    """
    from trainer.config import yaml_files

    file = run_folder.config_file(path)
    values = yaml_files.read(file, overrides, own={"name": file.stem, "run_dir": ""})
    given = {override.partition("=")[0] for override in overrides}
    if (home := run_folder.home(file)) and "run_dir" not in given:
        values["run_dir"] = "" if "name" in given else str(home)
    cfg: RunConfig = schema.build(RunConfig, values, known=schema.dotted_keys(RunConfig))
    cfg.run_dir = cfg.run_dir or f"runs/{cfg.name}"
    check(cfg)
    return cfg


def earlier(folder: Path) -> Iterator[RunConfig]:
    """Yield the configs that the run in `folder` has had, but for those that this version cannot read."""
    for file in (folder / run_folder.CONFIGS).glob("step-*.yaml"):
        with contextlib.suppress(ValueError):  # of an older version of the project, perhaps
            yield load(file)


def dump(cfg: RunConfig) -> str:
    """The config as YAML with every default written out; `load` reads it back to an equal config."""
    from trainer.config import yaml_files

    return yaml_files.write(schema.plain(cfg))


def settings(cfg: RunConfig) -> dict[str, Any]:
    """Return dotted key → value of what shapes the loss curve besides model and seed: equal for two layouts
    of one run.
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
    """Check each key, and what several keys must agree on, except the layout (`layout` checks that).

    Raises:
        ValueError: one line with the key and its value.
    """
    keys.check(cfg)
    cfg.model.check()
    check_data(cfg.data)
    train = cfg.train
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cfg.name):
        raise ValueError(f"name={cfg.name!r}: not a plain folder name (letters, digits, . _ -)")
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
    parameters = cfg.model.parameters().total
    if 4 * parameters not in schema.INT64:
        raise ValueError(
            f"{', '.join(cfg.model.sizes_to_lower())}: a model of {parameters:.3g} parameters, more bytes "
            "than 64 bits count: lower one of the two"
        )


def layout(cfg: RunConfig, world: int) -> Layout:
    """Return the layout of the run on `world` ranks, once model and batch are known to divide so.

    Raises:
        ValueError: one line with the arithmetic that fails.
    """
    found = resolve(cfg.parallel, world)
    cfg.model.check_layout(tp=found.tp, cp=found.cp)
    for key, blocks in cfg.model.block_counts().items():
        check_stages(found, blocks=blocks, key=key, cut=cfg.parallel.cut)
    check_batch(
        found,
        global_batch=cfg.train.global_batch,
        micro_batch=cfg.train.micro_batch,
        seq_len=cfg.data.seq_len,
    )
    return found
