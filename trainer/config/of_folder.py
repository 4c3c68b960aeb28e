"""The config of a Hugging Face folder, as that of a run which had trained its model. Imports no torch.

A folder says what its model is. What it does not say, a run's keys say: their defaults are those here, and
every key may be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.config import checks, schema, yaml_files
from trainer.config.plain import plain
from trainer.config.run_config import RunConfig
from trainer.folder import run_folder
from trainer.huggingface import choose, folder
from trainer.huggingface.families.family import Family
from trainer.huggingface.families.labels import names_in
from trainer.models.config import ModelConfig
from trainer.models.pictures import pictures_of
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.registry import OBJECTIVES

LONGEST = 2048
"""Tokens that a model reads at once where data.seq_len is not given: memory grows with them."""

_POSITIONS = ("max_position_embeddings", "n_positions")
_PACKING = {"classification": "one", "tags": "marked", "answers": "marked", "instruction": "marked"}


def is_folder(path: Path) -> bool:
    """Whether `path` is a Hugging Face folder, and no run folder."""
    return folder.is_folder(path) and not run_folder.is_run(path)


def find(path: str | Path) -> Path:
    """Return the folder that a RUN on the command line means, where a Hugging Face folder will do, too.

    ValueError, one line, as of `run_folder.find`; or where it holds an adapter alone.
    """
    path = Path(path)
    if is_folder(path):
        return path
    if (path / "adapter_config.json").is_file():
        raise ValueError(
            f"{path}: an adapter without the model that it is added to: give the run, or the folder that "
            "`germinal export RUN --merge` writes"
        )
    try:
        return run_folder.find(path)
    except ValueError as error:
        neither = f"; nor is it a Hugging Face folder: it has no {folder.CONFIG}" if path.is_dir() else ""
        raise ValueError(f"{error}{neither}") from None


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config of the model in a Hugging Face folder, with each `key=value` set in it.

    The objective is the one that the model was made for; data.seq_len is what its tokenizer and its positions
    allow, at most `LONGEST`. There are no corpora in it.

    ValueError, one line, where the architecture is not supported or a key is wrong.
    """
    family, model = choose.of_folder(path)
    data: dict[str, Any] = {"sources": [{"path": "unknown"}]}
    objective = _objective(family, model, path, overrides)
    data["packing"] = _PACKING.get(objective, "cut")
    if model.vocab:
        data["seq_len"] = _context(path)
    if pictures := pictures_of(model):
        data |= {"packing": "one", "image_size": pictures.size}
    values = {
        "name": "model",
        "run_dir": str(path),
        "model": plain(model),
        "data": data,
        "objective": _keys_of(objective, path),
    }
    given = yaml_files.overridden(values, overrides, str(path))
    cfg: RunConfig = schema.build(RunConfig, given, elsewhere=schema.dotted_keys(RunConfig))
    checks.check(cfg)
    return replace(cfg, data=replace(cfg.data, sources=[]))


def _objective(family: Family, model: ModelConfig, path: Path, overrides: Sequence[str]) -> str:
    """Return the objective that the architecture is for, or else the first one that a model of these sizes
    and heads is for, unless one is given.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "objective.kind":
            return value
    if family.objective:
        return family.objective
    offered = {getattr(model, "head", "")} & model.offers or model.offers
    for kind, objective in OBJECTIVES.items():
        if objective.needs <= offered and _learns(model, objective):
            return kind
    raise ValueError(f"{path}: no objective is known for model.kind={model.kind}")


def _keys_of(objective: str, path: Path) -> dict[str, Any]:
    """Return the keys of an objective: its kind, and of tags the names that config.json states."""
    names = list(names_in(folder.read_config(path))) if objective == "tags" else []
    return {"kind": objective} | ({"tags": names} if names else {})


def _learns(model: ModelConfig, objective: type[ObjectiveConfig]) -> bool:
    """Whether the model learns the numbers that the objective asks for, such as CLIP's temperature."""
    wanted = getattr(objective, "learnt", None)
    return wanted is None or wanted == getattr(model, "learnt", wanted)


def positions(path: Path) -> int:
    """Return how many tokens config.json says that the model reads at once; 0 where it says nothing."""
    return min((int(one) for one in _numbers(folder.read_config(path), *_POSITIONS)), default=0)


def _context(path: Path) -> int:
    """Return how many tokens a row has: what the model and its tokenizer take, at most `LONGEST`."""
    tokenizer = path / "tokenizer_config.json"
    # Tokenizers without a limit say 1e30.
    limits = _numbers(folder.read_json(tokenizer), "model_max_length") if tokenizer.is_file() else []
    return int(min([LONGEST, positions(path) or LONGEST, *limits]))


def _numbers(values: dict[str, Any], *keys: str) -> list[float]:
    text = values.get("text_config")
    places = (values, text if isinstance(text, dict) else {})
    found = [place[key] for place in places for key in keys if key in place]
    return [one for one in found if isinstance(one, int | float) and one >= 1]
