"""The frozen weights of a run: read from `model.init_from` at every start, and known by their hash."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.engine import Chunk
from trainer.checkpoint import folder as folders
from trainer.config.run_config import RunConfig
from trainer.first_weights.fill import fill, matched, refuse_drawn
from trainer.first_weights.open import open_source
from trainer.first_weights.source import WeightSource
from trainer.models.config import init_from
from trainer.ranks import Ranks
from trainer.state import Identity


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
    source = open_source(given, ranks)
    return Base(source, source.digest(ranks))


def fill_frozen(base: Base | None, chunks: Iterable[Chunk], cfg: RunConfig, ranks: Ranks) -> None:
    """Fill chunks of frozen parameters, `Engine.frozen`; nothing without a base. Collective. An engine is to
    be told by `load` afterwards.

    RuntimeError where the source lacks one: it would stay as it was drawn.
    """
    if base is None:
        return
    chunks = list(chunks)
    found = matched(chunks, base.source, cfg, ranks)
    refuse_drawn(found, base.source, cfg)
    ranks.together(lambda: fill(chunks, base.source, found))


def check_base(base: Base | None, checkpoint: Path) -> None:
    """RuntimeError where a checkpoint was trained beside other frozen weights."""
    if base is not None:
        identity: dict[str, Any] = json.loads((checkpoint / folders.STATE).read_bytes())["identity"]
        Identity(base=base.to_json()).check_base(identity, str(checkpoint))


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
