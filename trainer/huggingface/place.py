"""Where a folder has our parameters. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.huggingface.families.family import Family
from trainer.huggingface.folder import CONFIG, StoredTensor
from trainer.huggingface.mapping import Mapped
from trainer.models.config import ModelConfig


def place(
    family: Family, model: ModelConfig, stored: Mapping[str, StoredTensor], path: Path
) -> tuple[dict[str, Mapped], dict[str, list[str]]]:
    """Return our parameter's name → its part of their tensor, of those that the folder has; and their
    tensor's name → the names under which the folder has it, the usual one first. Several are to be equal.

    family, model: as `choose.of_folder` found them.
    stored: the folder's tensors.
    path: the folder.

    RuntimeError, one line, where a tensor has not the shape that config.json describes.
    """
    found: dict[str, Mapped] = {}
    names: dict[str, list[str]] = {}
    mapped = [*family.mapped(model), *family.also(model)]
    own = {one.theirs for one in mapped}
    for one in mapped:
        known = [name for name in family.known_as(one.theirs) if name == one.theirs or name not in own]
        there = [name for name in known if name in stored]
        if not there or one.copy:
            continue
        for name in there:
            if (tensor := stored[name]).shape != one.whole:
                raise RuntimeError(
                    f"{path / tensor.file}: tensor {name} is {list(tensor.shape)}, where {CONFIG} describes "
                    f"{list(one.whole)}"
                )
        found[one.ours], names[one.theirs] = one, there
    return found, names
