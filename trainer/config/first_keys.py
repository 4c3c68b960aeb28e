"""`model.init_from`: the model that a run begins from, and the keys of `model:` that it gives. Imports no
torch.

Keys of `model:` that a config leaves out are those of the model that it begins from. A key that is given and
does not fit is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainer.config import schema
from trainer.config.plain import plain
from trainer.config.run_config import RunConfig
from trainer.folder import run_folder
from trainer.huggingface import choose, folder
from trainer.huggingface.meaning import WITHOUT_MEANING, differing
from trainer.models.config import ModelConfig
from trainer.models.own import own_config
from trainer.models.registry import MODELS

OF_A_TASK = (
    *("head", "classes", "pool", "embedding", "embedding_hidden", "learnt", "next_sentence"),
    "head_layer",
)
"""Keys of what comes behind the blocks: a layer there that does not fit is drawn anew."""

MAY_DIFFER = frozenset(
    (
        "vocab",  # if larger: new rows are drawn
        *OF_A_TASK,
        # What a token sees, for training on longer texts; weights have the same shapes.
        *("rope_theta", "rope_theta_local", "rope_scaling", "rope_factor", "rope_low_frequency"),
        *("rope_high_frequency", "rope_original_positions", "window", "global_every"),
    )
)
"""Keys that a config may set to another value than the model that it begins from."""


@dataclass(frozen=True)
class Origin:
    """What `model.init_from` names.

    folder: a Hugging Face folder, or a run folder.
    is_run: which of the two.
    step: of the run's checkpoint; None: the newest that verifies.
    """

    folder: Path
    is_run: bool
    step: int | None = None

    @property
    def tokenizer(self) -> Path:
        """Where its tokenizer is, if it has one of that form."""
        return self.folder / "tokenizer.json"


def origin(given: str) -> Origin:
    """Return what `model.init_from=given` names; ValueError, one line, where it is neither kind of folder."""
    path = Path(given)
    if folder.is_folder(path):
        return Origin(path, is_run=False)
    step = None
    if not path.exists() and (match := re.fullmatch(r"(.+)@(\d+)", given)):
        path, step = Path(match[1]), int(match[2])
    if not path.exists():
        raise ValueError(
            f"model.init_from={given!r}: no such folder: give a Hugging Face folder on disk, or a run folder "
            "as RUN or RUN@STEP; nothing is downloaded"
        )
    try:
        return Origin(run_folder.find(path), is_run=True, step=step)
    except ValueError as error:
        neither = f"no {folder.CONFIG} there, so no Hugging Face folder"
        raise ValueError(f"model.init_from={given!r}: {neither}; {error}") from None


def fill(values: Any) -> dict[str, Any]:
    """Return a config's mapping `model:` with the keys that it leaves out; the mapping itself where it begins
    from no model.

    values: the mapping as it was given.
    """
    given = values.get("init_from") if isinstance(values, dict) else None
    if not isinstance(given, str) or not given:
        return values  # type: ignore[no-any-return]
    source = model_of(origin(given))
    kind = str(values.get("kind", source.kind))
    target = MODELS.get(kind) or own_config(kind)
    known = plain(source)
    if target is not None:
        keys = {schema.yaml_key(field) for field in fields(target)}  # type: ignore[arg-type]
        known = {key: value for key, value in known.items() if key in keys}
    return _over(known, values) | {"kind": kind}


def check(cfg: ModelConfig, given: str) -> None:
    """ValueError, one line with the key and both values, where the model that `cfg` describes cannot begin
    from the one that `given` names.
    """
    source = model_of(origin(given))
    if not _related(type(cfg), type(source)):
        raise ValueError(
            f"model.kind={cfg.kind}: model.init_from={given} is of model.kind={source.kind}, which has other "
            "parameters: leave model.kind out"
        )
    for key, (ours, theirs) in differing(cfg, source).items():
        if key == "vocab" and ours < theirs:
            raise ValueError(
                f"model.vocab={ours}: model.init_from={given} has {theirs}: a vocabulary may be enlarged, "
                f"not cut: leave the key out, or give at least {theirs}"
            )
        if key not in MAY_DIFFER:
            raise ValueError(
                f"model.{key}={_shown(ours)}: model.init_from={given} has {_shown(theirs)}: leave the key "
                "out, or begin from another model"
            )


def is_another_task(cfg: ModelConfig, source: ModelConfig) -> bool:
    """Whether the model that another one begins from was trained for another task."""
    return type(cfg) is not type(source) or not differing(cfg, source).keys().isdisjoint(OF_A_TASK)


def model_of(place: Origin) -> ModelConfig:
    """Return the config of a model; ValueError, one line, where it cannot be read or is not supported."""
    if not place.is_run:
        return choose.of_folder(place.folder)[1]
    from trainer.config import yaml_files

    values = yaml_files.read(run_folder.config_file(place.folder), own={"name": "", "run_dir": ""})
    cfg: RunConfig = schema.build(RunConfig, values)
    if cfg.finetune.method == "adapters":
        raise ValueError(
            f"model.init_from: {place.folder} was fine-tuned with finetune.method=adapters, whose layers "
            "cannot be merged into the model: begin from the model that it began from, with "
            "finetune.adapter=DIR of germinal export"
        )
    return cfg.model


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `above` over `below`, key by key, in inner mappings too."""
    found = {key: value for key, value in below.items() if key not in WITHOUT_MEANING or key == "init_std"}
    for key, value in above.items():
        inner = found.get(key)
        found[key] = _over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return found


def _related(one: type[ModelConfig], other: type[ModelConfig]) -> bool:
    """Whether both are kinds of one model, such as an encoder with another head."""
    return any(issubclass(one, base) and issubclass(other, base) for base in (*MODELS.values(), one))


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
