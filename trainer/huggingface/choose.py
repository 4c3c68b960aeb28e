"""Which family a folder is of, and which a model is exported as. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.huggingface.families.family import Family
from trainer.huggingface.families.pictures import PREPROCESSOR as PREPROCESSOR_KEY
from trainer.huggingface.families.registry import FAMILIES
from trainer.huggingface.fields import Fields
from trainer.huggingface.folder import CONFIG, PREPROCESSOR, read_config, read_json
from trainer.huggingface.meaning import differing, meaning
from trainer.models.config import ModelConfig

MOST_LAYERS = 10_000  # a plan lists them all: a damaged number must not fill the memory


def of_folder(path: Path) -> tuple[Family, ModelConfig]:
    """Return the family of a folder, and its model's config as ours.

    Raises:
        ValueError: one line: the architecture is not among `FAMILIES`, or a key of config.json is not
            supported, which it names.
    """
    values = read_config(path)
    if (path / PREPROCESSOR).is_file():
        values[PREPROCESSOR_KEY] = read_json(path / PREPROCESSOR)
    return of_config(values, str(path / CONFIG))


def of_config(values: dict[str, Any], where: str) -> tuple[Family, ModelConfig]:
    """As `of_folder`, of the content of a config.json. `where`: the file."""
    kind = values.get("model_type")
    families = [one for one in FAMILIES if one.model_type == kind]
    listed = values.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else "no architecture"
    if not families:
        known = ", ".join(dict.fromkeys(one.model_type for one in FAMILIES))
        raise ValueError(
            f"{where}: model_type={kind!r} ({named}): this architecture is not supported: known are {known}"
        )
    family = next((one for one in families if one.architecture == named), families[0])
    _check_layers(values, where)
    fields = Fields(values, where)
    fields.must_be("quantization_config", None)
    cfg = family.from_config(fields)
    fields.finish()
    cfg.check()
    return family, cfg


def _check_layers(values: dict[str, Any], where: str) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _check_layers(value, where)
        elif key in ("num_hidden_layers", "n_layer") and isinstance(value, int) and value > MOST_LAYERS:
            raise ValueError(f"{where}: {key}={value}: no model has more than {MOST_LAYERS} layers")


def for_export(cfg: ModelConfig, context: int, objective: str = "") -> tuple[Family, dict[str, Any]]:
    """Return the family that a model is exported as, and its config.json's keys of the architecture.

    A family can express the model if reading its keys back gives a config of the same meaning: so what is
    exported is what the keys say.

    context: tokens of a training sequence.
    objective: `objective.kind` of the run.

    ValueError, one line, where no family can: with the first key that the nearest family has otherwise.
    """
    nearest: tuple[int, str] | None = None
    for family in FAMILIES:
        if type(cfg) is not family.config or family.objective not in ("", objective):
            continue
        theirs = family.to_config(cfg, context)
        named = {"model_type": family.model_type, "architectures": [family.architecture], **theirs}
        if family.preprocessor is not None:
            named[PREPROCESSOR_KEY] = family.preprocessor(cfg)
        try:
            _, back = of_config(named, family.architecture)
        except ValueError as error:
            nearest = nearest or (len(meaning(cfg)), str(error))
            continue
        wrong = {key: values for key, values in differing(cfg, back).items() if key not in family.left_open}
        if not wrong:
            return family, theirs
        key, (ours, other) = next(iter(wrong.items()))
        if nearest is None or len(wrong) < nearest[0]:
            nearest = len(wrong), f"model.{key}={ours}, where {family.architecture} has {other}"
    if nearest is None:
        raise ValueError(
            f"model.kind={cfg.kind}: no architecture of transformers is known for it: {_kinds()} are exported"
        )
    raise ValueError(f"no architecture of transformers computes what this model does: {nearest[1]}")


def _kinds() -> str:
    return ", ".join(sorted({family.config.kind for family in FAMILIES}))
