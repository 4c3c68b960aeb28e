"""A run's checkpoint → its model, with the tokenizer and what a prompt needs."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from torch import nn

from trainer.checkpoint import folder as checkpoints
from trainer.checkpoint.newest import newest
from trainer.config.run_config import RunConfig
from trainer.trained.tokenizer import load_tokenizer
from trainer.trained.weights import load_model


@dataclass(frozen=True)
class TrainedModel:
    """The model of a checkpoint, and how its training documents were laid out.

    model: on one device, in evaluation mode.
    tokenizer: the one that the model was trained with.
    context: tokens of a training sequence.
    separator: the id between two documents.
    template: whether the tokenizer's template stood around each document.
    """

    model: nn.Module
    tokenizer: Tokenizer
    context: int
    separator: int
    template: bool


def load_newest(cfg: RunConfig, run: Path) -> TrainedModel:
    """Load the newest checkpoint of `run` that verifies; RuntimeError where there is none.

    The run may be training meanwhile: where it removes the checkpoint that is being read, there is a newer
    one, which is then loaded.
    """
    root = run / "checkpoints"
    while True:
        before = set(checkpoints.steps(root))
        try:
            return load_checkpoint(cfg, run, _newest_checkpoint(run))
        except (RuntimeError, OSError):
            if before <= set(checkpoints.steps(root)):
                raise


def load_step(cfg: RunConfig, run: Path, step: int) -> TrainedModel:
    """Load the checkpoint of `step`; ValueError where there is none, RuntimeError where it is damaged."""
    root = run / "checkpoints"
    steps = checkpoints.steps(root)
    if step not in steps:
        raise ValueError(f"--step {step}: {run} has no checkpoint of that step; those there: {steps[::-1]}")
    checkpoints.verify(folder := checkpoints.step_folder(root, step))
    return load_checkpoint(cfg, run, folder)


def load_checkpoint(cfg: RunConfig, run: Path, folder: Path, device: str = "") -> TrainedModel:
    """Load a verified checkpoint and the tokenizer that it was trained with.

    Args:
        cfg: the run's config.
        run: the run folder, which holds the tokenizer.
        folder: the checkpoint.
        device: see `trainer.trained.weights.load_model`.

    Raises RuntimeError where the tokenizer is not the checkpoint's.
    """
    state = json.loads((folder / checkpoints.STATE).read_bytes())
    trained_with = state["identity"].get("tokenizer")
    if not trained_with:
        raise RuntimeError(
            f"{folder} does not say which tokenizer it was trained with, as old checkpoints do not: "
            "train the run further, and the next one will"
        )
    tokenizer = load_tokenizer(run / "tokenizer.json", trained_with["sha256"])
    # Checkpoints that do not say were trained on documents without the template.
    template = trained_with.get("template", False)
    model = load_model(cfg.model, folder, device)
    return TrainedModel(model, tokenizer, cfg.data.seq_len, trained_with["eos"], template)


def _newest_checkpoint(run: Path) -> Path:
    """Find the newest checkpoint that verifies; print on standard error which were passed over, and why."""
    root = run / "checkpoints"
    found = newest(root)
    for step, reason in found.passed_over:
        print(f"passed over step {step}: {reason}", file=sys.stderr)
    if found.step is not None:
        return checkpoints.step_folder(root, found.step)
    why = f"none of its {len(found.passed_over)} verifies" if found.passed_over else f"{root} holds none"
    raise RuntimeError(f"{run} has no checkpoint to generate from: {why}; train it first")
