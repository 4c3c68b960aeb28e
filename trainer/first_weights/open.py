"""`model.init_from` → the source of the first weights; and the frozen weights of a run, which are read from
there at every start and known by their hash.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint import folder as folders
from trainer.checkpoint.newest import damage, newest
from trainer.config import first_keys, reading
from trainer.config.first_keys import Origin
from trainer.config.run_config import RunConfig
from trainer.first_weights.checkpoint_source import CheckpointSource
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.first_weights.merged_source import MergedSource
from trainer.first_weights.source import WeightSource
from trainer.models.config import init_from
from trainer.ranks import Ranks, on_every_rank
from trainer.state import Identity


def open_source(given: str, ranks: Ranks | None = None) -> WeightSource:
    """Open what `model.init_from=given` names: of a run that has trained a part of its model, what it has
    trained over its base, with LoRA's branches merged. Collective where there are `ranks`, which share the
    reading of a checkpoint's bytes: it is verified.

    Raises:
        ValueError: there is no such folder or step, or it is of an architecture that is not supported.
        RuntimeError: it is damaged.
    """
    ranks = ranks or Ranks()
    place = ranks.together(lambda: first_keys.origin(given))
    if not place.is_run:
        return ranks.together(lambda: HuggingFaceSource(place.folder))
    step = _verified_step(given, place, ranks)
    checkpoint = folders.step_folder(place.folder / "checkpoints", step)
    cfg = ranks.together(lambda: reading.load(place.folder))
    if cfg.finetune.freezes:
        return whole_weights(cfg, checkpoint, ranks)
    return ranks.together(lambda: CheckpointSource(checkpoint, first_keys.model_of(place)))


def _verified_step(given: str, place: Origin, ranks: Ranks) -> int:
    root = place.folder / "checkpoints"
    if place.step is None:
        found = newest(root, ranks)
        if found.step is None:
            why = f"none of its {len(found.passed_over)} verifies" if found.passed_over else "it has none"
            raise on_every_rank(RuntimeError(f"model.init_from={given}: no checkpoint of that run: {why}"))
        return found.step
    there = ranks.on_rank_zero(lambda: folders.steps(root))
    if place.step not in there:
        raise on_every_rank(
            ValueError(
                f"model.init_from={given}: {place.folder} has no checkpoint of that step; those there: "
                f"{there[::-1]}"
            )
        )
    if reason := damage(folders.step_folder(root, place.step), ranks):
        raise on_every_rank(RuntimeError(f"model.init_from={given}: {reason}"))
    return place.step


@dataclass(frozen=True)
class Base:
    """What the frozen parameters are read from.

    source: the weights.
    hash: of all of them.
    """

    source: WeightSource
    hash: str

    def to_json(self) -> dict[str, str]:
        """Return what a checkpoint keeps of it; see `trainer.state.Identity`."""
        return {"where": self.source.where, "hash": self.hash}


def open_base(cfg: RunConfig, ranks: Ranks, *, run: Path | None = None) -> Base | None:
    """Open the source of a run's frozen weights; None where it has none. Collective.

    run: the run folder; None: the config's. Where `model.init_from` is a run without a step, the step that
        the run's checkpoints were trained beside is taken again.

    Raises as `open_source` does.
    """
    if not cfg.finetune.freezes:
        return None
    given = ranks.on_rank_zero(lambda: _pinned(init_from(cfg.model), run or cfg.folder))
    try:
        source = open_source(given, ranks)
    except (ValueError, RuntimeError) as error:
        if not re.search(r"@\d+$", given):
            raise
        raise on_every_rank(
            type(error)(
                f"{error}: finetune.method={cfg.finetune.method} reads what it freezes from there at every "
                "start: bring the step back from a copy, or begin a new run from another "
                "(checkpoint.keep_every of a run keeps steps)"
            )
        ) from None
    return Base(source, source.digest(ranks))


def check_base(base: Base | None, checkpoint: Path) -> None:
    """RuntimeError where a checkpoint was trained beside other frozen weights."""
    if base is not None:
        identity: dict[str, Any] = json.loads((checkpoint / folders.STATE).read_bytes())["identity"]
        Identity(base=base.to_json()).check_base(identity, str(checkpoint))


def whole_weights(cfg: RunConfig, checkpoint: Path, ranks: Ranks | None = None) -> WeightSource:
    """Return the weights of a run's model at a verified checkpoint. Collective where there are `ranks`.

    ValueError where modules were added that are no part of the model's own; RuntimeError where the frozen
    weights are not those that the checkpoint was trained beside.
    """
    if cfg.finetune.method == "adapters":
        raise ValueError(
            "finetune.method=adapters: its layers have an activation between them, so they cannot be merged: "
            "export them apart"
        )
    own = CheckpointSource(checkpoint, cfg.model)
    base = open_base(cfg, ranks or Ranks(), run=checkpoint.parent.parent)
    if base is None:
        return own
    check_base(base, checkpoint)
    return MergedSource(own, base.source, checkpoint, cfg)


def _pinned(given: str, folder: Path) -> str:
    """Return RUN@STEP for a RUN that a checkpoint under `folder` was trained beside; else `given`."""
    root = folder / "checkpoints"
    if not (Path(given) / "checkpoints").is_dir():
        return given
    for step in folders.steps(root):
        try:
            identity = json.loads((folders.step_folder(root, step) / folders.STATE).read_bytes())["identity"]
            where = Path(identity["base"]["where"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        same = where.parent.parent.resolve() == Path(given).resolve()
        return f"{given}@{int(where.name.removeprefix('step-'))}" if same else given
    return given
