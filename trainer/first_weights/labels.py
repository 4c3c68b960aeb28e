"""The names of classes: those of a model that a run begins from, and its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint.folder import STATE
from trainer.first_weights.match import Match
from trainer.first_weights.source import WeightSource
from trainer.huggingface.families.labels import names_in
from trainer.huggingface.folder import is_folder, read_config


def labels_at(where: Path) -> list[str]:
    """Return the names of the classes of a model, by their numbers; none where it does not state them.

    where: a Hugging Face folder, or a checkpoint.
    """
    if is_folder(where):
        return list(names_in(read_config(where)))
    state = json.loads((where / STATE).read_bytes())
    return list(state["identity"].get("classes", ()))


def check_labels(own: Sequence[str], source: WeightSource, found: Match, task: Sequence[str]) -> None:
    """ValueError, one line, where the layer of the classes is taken from a model whose classes are others.

    own: the names of the run's classes.
    found: what becomes of the parameters.
    task: the modules that belong to the task; see `ModelPlan.task`.
    """
    if not own or any(name.startswith(f"{head}.") for head in task for name in found.drawn):
        return
    theirs = labels_at(Path(source.where))
    for number, name in enumerate(own if theirs else ()):
        there = theirs[number] if number < len(theirs) else None
        if there != name:
            new = "" if name in theirs else f", and {name!r} is a label that its config does not have"
            raise ValueError(
                f"{source.where}: class {number} is {there!r} there, and {name!r} in the corpora{new}: "
                "prepare them with its classes in its order, or set model.classes to more than "
                f"{len(theirs)}, so that the layer of the classes is drawn anew"
            )
