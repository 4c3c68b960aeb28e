"""`model.init_from` → the source of the first weights."""

from __future__ import annotations

from trainer.checkpoint import folder as folders
from trainer.checkpoint.newest import damage, newest
from trainer.config import first_keys, reading
from trainer.config.first_keys import Origin
from trainer.first_weights.checkpoint_source import CheckpointSource
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.first_weights.source import WeightSource
from trainer.ranks import Ranks, on_every_rank


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
        # Which opens a base by this function.
        from trainer.first_weights.merged_source import whole_weights

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
