"""The config of `germinal transfer`: how score depends on the number of labels, pre-trained and not. Imports
no torch.

A file has the keys of `TransferConfig` and two configs of runs: `pretrain`, or the folder of a finished run;
and `finetune`, without what differs between fine-tunings (`OF_A_TRIAL`). They are written as files of their
own, which `germinal train` and `germinal finetune` read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from common.files import write_atomically
from trainer.config import keys, reading, schema
from trainer.config.plain import plain
from trainer.config.run_config import RunConfig
from trainer.folder import run_folder
from trainer.folder.fence import Fence, Guard, unfenced

Tuning = Literal["full", "probe", "lora", "adapters"]
PRETRAIN, FINETUNE, RECORD = "pretrain", "finetune", "transfer.yaml"
OF_A_TRIAL = ("name", "run_dir", "seed")  # of `finetune`, besides keys of its sections
BEGUN = "classes.json"  # written once labels and first weights are drawn, and fine-tuning can begin
LABELS, RANDOM, RUNNING = DRAWN = ("labels", "random", "running")
FIXED = (PRETRAIN, FINETUNE, "labelled", "heldout", "validation")
"""Keys that a later start may not change, for fine-tunings that are done stay done. The other keys say which
fine-tunings there are.
"""


@dataclass
class TransferConfig:
    """What is compared."""

    name: Annotated[str, "of the comparison: letters, digits, . _ -; left out: the file's own"]
    labelled: Annotated[
        str,
        "the corpus with classes that labels are drawn from, and documents to choose rates by",
        "not empty",
    ] = ""
    heldout: Annotated[
        str, "the corpus that scores are of; neither pre-training nor fine-tuning reads it", "not empty"
    ] = ""
    labels: Annotated[list[int], "the numbers of labelled documents", "≥ 1", "not empty"] = field(
        default_factory=lambda: [8, 16, 32, 64, 128, 256, 512, 1024]
    )
    seeds: Annotated[int, "fine-tunings of each kind: draws of labels, first weights, order", "≥ 2"] = 5
    methods: Annotated[list[Tuning], "of finetune.method", "not empty"] = field(
        default_factory=lambda: ["full", "probe", "lora"]
    )
    metric: Annotated[str, "the figure of an evaluation that is the score; more is better", "not empty"] = (
        "top_1"
    )
    validation: Annotated[
        int, "documents of `labelled` that rates are chosen by, and labels not drawn from", "≥ 1"
    ] = 256
    rates: Annotated[
        dict[str, list[float]],
        "method → the learning rates to choose among, for pre-trained and random weights each; one alone: "
        "nothing is chosen",
    ] = field(default_factory=dict)
    rates_at: Annotated[
        list[int], "the numbers of labels that rates are chosen at; others take the nearest one's", "≥ 1"
    ] = field(default_factory=lambda: [16, 128, 1024])
    rate_draws: Annotated[int, "draws of labels that a rate's score is the mean of", "≥ 1"] = 2
    run_dir: Annotated[str, "the folder, from the working directory; empty: runs/<name>"] = ""

    @property
    def folder(self) -> Path:
        """Where everything of the comparison goes."""
        return Path(self.run_dir)


@dataclass(frozen=True)
class Transfer:
    """A comparison, read and checked.

    cfg: its own keys.
    pretraining: the config of pre-training; that of the finished run where one was named.
    pretrained: the folder of the run that has the pre-trained weights.
    given: a finished run was named.
    finetune: the mapping `finetune:`, as it was given.
    fence: this start's right to write into the comparison's folder; None: nobody else writes there.
    """

    cfg: TransferConfig
    pretraining: RunConfig
    pretrained: Path
    given: bool
    finetune: dict[str, Any]
    fence: Fence | None = None

    @property
    def guard(self) -> Guard:
        """Raises RuntimeError, one line, where a later start has taken the comparison's folder."""
        return self.fence.check if self.fence else unfenced

    @property
    def finetune_file(self) -> Path:
        """The config that all fine-tunings have in common."""
        return self.cfg.folder / f"{FINETUNE}.yaml"

    @property
    def pretrain_file(self) -> Path:
        """The config of pre-training."""
        return self.cfg.folder / f"{PRETRAIN}.yaml"


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    hold: Callable[[Path], Fence | None] = lambda folder: None,
) -> Transfer:
    """Return the comparison that a file and each `key=value` describe, and write the configs of its runs into
    its folder.

    hold: the comparison's folder → this start's right to write into it; called before anything is changed
        there.

    Raises ValueError, one line with the key, where a value is wrong, or where the folder has fine-tunings of
    another comparison; and what `hold` raises.
    """
    from trainer.config import yaml_files

    file = Path(path)
    if file.is_dir() and (file / RECORD).is_file():
        file = file / RECORD
    values = yaml_files.read(file, overrides, own={"name": file.stem, "run_dir": ""})
    pretrain, finetune = (values.pop(key, None) for key in (PRETRAIN, FINETUNE))
    cfg: TransferConfig = schema.build(TransferConfig, values)
    _check(cfg, pretrain, finetune)
    cfg.run_dir = cfg.run_dir or f"runs/{cfg.name}"
    record = plain(cfg) | {PRETRAIN: pretrain, FINETUNE: finetune}
    cfg.folder.mkdir(parents=True, exist_ok=True)
    fence = hold(cfg.folder)
    guard = fence.check if fence else unfenced
    _refuse_another(cfg.folder, record, guard)
    shared = {**finetune, "name": f"{cfg.name}_{FINETUNE}"}
    _write(cfg.folder / f"{FINETUNE}.yaml", shared, guard)
    if isinstance(pretrain, str):
        pretrained = run_folder.find(pretrain)
        pretraining = reading.load(pretrained)
    else:
        pretrained = cfg.folder / "pretrained"
        own = {**pretrain, "name": f"{cfg.name}_{PRETRAIN}", "run_dir": str(pretrained)}
        _write(cfg.folder / f"{PRETRAIN}.yaml", own, guard)
        pretraining = reading.load(cfg.folder / f"{PRETRAIN}.yaml")
    _refuse_heldout(cfg, pretraining)
    _write(cfg.folder / RECORD, record, guard)
    return Transfer(cfg, pretraining, pretrained, isinstance(pretrain, str), finetune, fence)


def _write(path: Path, values: dict[str, Any], guard: Guard) -> None:
    """Write a config, unless it is there: the comparison's processes read it at the same time."""
    from trainer.config import yaml_files

    text = yaml_files.write(values).encode()
    if not path.is_file() or path.read_bytes() != text:
        write_atomically(path, text, guard=guard)


def _check(cfg: TransferConfig, pretrain: Any, finetune: Any) -> None:
    keys.check(cfg)
    if not isinstance(pretrain, dict | str):
        raise ValueError(
            f"{PRETRAIN}: missing; give a run's config as a mapping, or the folder of a finished run"
        )
    if not isinstance(finetune, dict):
        raise ValueError(f"{FINETUNE}: missing; give a run's config as a mapping, without model.init_from")
    for key in OF_A_TRIAL:
        if key in finetune:
            raise ValueError(
                f"{FINETUNE}.{key}={finetune[key]!r}: each fine-tuning has its own: leave it out"
            )
    for name in cfg.methods:
        if not cfg.rates.get(name):
            raise ValueError(
                f"rates.{name}: missing; give the learning rates to choose among, such as [1e-3]"
            )
        if min(cfg.rates[name]) <= 0:
            raise ValueError(f"rates.{name}={cfg.rates[name]}: a learning rate is above 0")
    if cfg.metric in ("loss", "bits_per_byte"):
        raise ValueError(f"metric={cfg.metric}: less of it is better: give a figure such as top_1 or f1")
    for key, listed in (("labels", cfg.labels), ("rates_at", cfg.rates_at), ("methods", cfg.methods)):
        if len(set(listed)) < len(listed):
            raise ValueError(f"{key}={listed}: one is there twice")


def _refuse_another(folder: Path, record: dict[str, Any], guard: Guard) -> None:
    """ValueError where the folder has begun a comparison that differs in one of `FIXED`."""
    if not (folder / RECORD).is_file():
        return
    before = yaml.safe_load((folder / RECORD).read_bytes())
    changed = [key for key in FIXED if before[key] != record[key]]
    if changed and (folder / BEGUN).is_file():
        raise ValueError(
            f"{changed[0]}: not as it was when {folder} was begun, whose fine-tunings would not be "
            "comparable: set it back, or give another name"
        )
    for name in DRAWN if changed else ():  # by a start that ended with a mistake, which is mended now
        guard()
        shutil.rmtree(folder / name, ignore_errors=True)


def _refuse_heldout(cfg: TransferConfig, pretraining: RunConfig) -> None:
    """ValueError where pre-training, or the labels, would be of the corpus that the scores are of."""
    heldout = Path(cfg.heldout).resolve()
    for number, source in enumerate(pretraining.data.sources):
        if Path(source.path).resolve() == heldout:
            raise ValueError(
                f"{PRETRAIN}.data.sources[{number}].path={source.path!r}: is heldout, whose documents the "
                "scores are of: pre-train on others"
            )
    if Path(cfg.labelled).resolve() == heldout:
        raise ValueError(f"labelled={cfg.labelled!r}: is heldout too: give two corpora")
