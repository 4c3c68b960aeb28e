"""A run's checkpoint → its model, with the tokenizer and what a prompt needs."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from torch import nn

from data.tokenizer.prompting import Prompting
from trainer.checkpoint import folder as checkpoints
from trainer.config.run_config import RunConfig
from trainer.trained.checkpoints import checkpoint_of, newest_checkpoint, read_newest
from trainer.trained.ends import ends_of
from trainer.trained.tokenizer import load_prompting
from trainer.trained.weights import load_model


@dataclass(frozen=True)
class TrainedModel:
    """The model of a checkpoint, and how its training documents were laid out.

    model: on one device, in evaluation mode.
    tokenizer: the one that the model was trained with.
    context: tokens of a training sequence.
    separator: the id between two documents.
    ends: the ids that end a text; the separator is among them.
    template: whether the tokenizer's template stood around each document.
    step: of the checkpoint.
    """

    model: nn.Module
    tokenizer: Tokenizer
    context: int
    separator: int
    ends: frozenset[int]
    template: bool
    step: int = 0

    @property
    def prompting(self) -> Prompting:
        """How texts become ids for this model."""
        return Prompting(self.tokenizer, self.separator, self.template)


def load_newest(cfg: RunConfig, run: Path) -> TrainedModel:
    """Load the newest checkpoint of `run` that verifies; RuntimeError where there is none. The run may be
    training meanwhile: see `read_newest`.
    """
    _, trained = read_newest(run, newest_checkpoint(run), lambda at: load_checkpoint(cfg, run, at))
    return trained


def load_step(cfg: RunConfig, run: Path, step: int) -> TrainedModel:
    """Load the checkpoint of `step`; ValueError where there is none, RuntimeError where it is damaged."""
    return load_checkpoint(cfg, run, checkpoint_of(run, step))


def load_checkpoint(cfg: RunConfig, run: Path, folder: Path, device: str = "") -> TrainedModel:
    """Load a verified checkpoint and the tokenizer that it was trained with.

    Args:
        cfg: the run's config.
        run: the run folder, which holds the tokenizer.
        folder: the checkpoint.
        device: see `trainer.trained.weights.load_model`.

    Raises RuntimeError where the tokenizer is not the checkpoint's.
    """
    texts = load_prompting(run, folder)
    model = load_model(cfg, folder, device)
    return TrainedModel(
        model,
        texts.tokenizer,
        cfg.data.seq_len,
        texts.separator,
        ends_of(cfg, run, texts),
        texts.template,
        step=checkpoints.read_manifest(folder).step,
    )
