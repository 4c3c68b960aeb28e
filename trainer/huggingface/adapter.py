"""An adapter on disk, as the branches of a model: PEFT's folder, or one with our names. Imports no torch.

```
adapter/
  adapter_config.json, adapter_model.safetensors   PEFT's, where the base has an architecture of transformers
  adapter.safetensors                              else: tensors under our names
  germinal.json                                    of those that we write: the settings, and the base's hash
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.huggingface import peft_format
from trainer.huggingface.choose import for_export
from trainer.huggingface.folder import StoredTensor, header, read_json
from trainer.huggingface.mapping import Mapped
from trainer.huggingface.peft_format import Branch
from trainer.models.config import ModelConfig
from trainer.models.tuned.config import FinetuneConfig

ABOUT = "germinal.json"
OWN_WEIGHTS = "adapter.safetensors"
SETTINGS = ("method", "rank", "alpha", "targets", "bottleneck")
"""Keys of `finetune:` that an adapter of ours keeps."""
_AGAIN = "write it again with germinal export"
_DEFAULTS = {key: getattr(FinetuneConfig(), key) for key in SETTINGS}


@dataclass(frozen=True)
class Kept:
    """A branch of ours in PEFT's file.

    branch: where it is.
    rank: of its matrices.
    scale: what their product is multiplied by.
    """

    branch: Branch
    rank: int
    scale: float


@dataclass(frozen=True)
class Adapter:
    """What is known of an adapter without reading its tensors.

    path: the folder.
    file: name of the safetensors file in it.
    settings: keys of `finetune:` that it was trained with, or that compute the same.
    stored: name in the file → tensor.
    branches: our layer → its branch; empty where the tensors have our names.
    whole: our parameter → its place in a tensor that is kept whole, such as a head's.
    base: hash of the base's weights; empty: not known.
    """

    path: Path
    file: str
    settings: Mapping[str, Any]
    stored: Mapping[str, StoredTensor]
    branches: Mapping[str, Kept]
    whole: Mapping[str, Mapped]
    base: str = ""

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Our parameters in it: name → shape in a model with these `settings`."""
        if self.file == OWN_WEIGHTS:
            return {name: stored.shape for name, stored in self.stored.items()}
        found = {name: one.shape for name, one in self.whole.items()}
        rank = self.settings["rank"]
        for one in self.branches.values():
            found[one.branch.a] = (rank, one.branch.inner)
            found[one.branch.b] = (one.branch.outer, rank)
        return found


def open_adapter(path: Path, model: ModelConfig) -> Adapter:
    """Return the adapter in a folder, as one for the model that `model` describes.

    Raises:
        ValueError: the folder is none, or the adapter is not LoRA's, or lies beside a layer that the model
            does not have.
        RuntimeError: a tensor is missing, or has not the shape that the model asks for.
    """
    own = (path / OWN_WEIGHTS).is_file()
    about = _about(path, own)
    base = about.get("base", {}).get("hash", "")
    if own:
        return Adapter(path, OWN_WEIGHTS, about["finetune"], header(path / OWN_WEIGHTS), {}, {}, base)
    settings = peft_format.read_settings(path)
    if not (path / peft_format.WEIGHTS).is_file():
        raise RuntimeError(f"{path / peft_format.WEIGHTS}: missing")
    stored = header(path / peft_format.WEIGHTS)
    mapped = for_export(model, 1)[0].mapped(model)
    kept = {}
    for branch in peft_format.branches(mapped):
        if rank := _rank_of(branch, stored, path):
            kept[branch.ours] = Kept(branch, rank, settings.scale(branch.theirs, rank))
            if not model.plan().block_of(f"{branch.ours}.weight"):
                raise ValueError(f"{path / peft_format.WEIGHTS}: {peft_format.not_in_a_block(branch.theirs)}")
    whole = {one.ours: one for one in mapped if peft_format.PREFIX + one.theirs in stored}
    known = {name for one in kept.values() for name in (one.branch.their_a, one.branch.their_b)}
    if extra := sorted(stored.keys() - known - {peft_format.PREFIX + one.theirs for one in whole.values()}):
        raise ValueError(f"{path / peft_format.WEIGHTS}: {peft_format.why_unknown(extra[0])}")
    in_task = model.plan().in_task
    if frozen := sorted(one.theirs for name, one in whole.items() if not in_task(name)):
        raise ValueError(
            f"{path / peft_format.CONFIG}: modules_to_save={list(settings.saved)}: {frozen[0]} is whole in "
            "the adapter, and besides LoRA only the layer of a task is trained: train the adapter without it"
        )
    if not kept:
        raise ValueError(f"{path / peft_format.WEIGHTS}: holds no matrices of LoRA")
    rank = max(one.rank for one in kept.values())
    # The largest scale is the run's, and each B is multiplied by its share of it.
    alpha = rank * max(one.scale for one in kept.values())
    targets = sorted({".".join(name.split(".")[-2:]) for name in kept})
    found = {"method": "lora", "rank": rank, "alpha": alpha, "targets": targets}
    return Adapter(path, peft_format.WEIGHTS, found, stored, kept, whole, base)


def _about(path: Path, own: bool) -> dict[str, Any]:
    """Return what germinal.json says; nothing where there is none.

    own: the tensors have our names, so their settings must be there.
    """
    if not (path / ABOUT).is_file():
        if own:
            raise ValueError(f"{path}: holds {OWN_WEIGHTS} without {ABOUT}, which says what it is: {_AGAIN}")
        if not peft_format.is_adapter(path):
            raise ValueError(f"finetune.adapter={path}: holds neither {peft_format.CONFIG} nor {ABOUT}")
        return {}
    about = read_json(path / ABOUT)
    settings = about.get("finetune") if own else about.get("finetune", _DEFAULTS)
    if not isinstance(about.get("base", {}), dict) or not isinstance(settings, dict):
        raise ValueError(f"{path / ABOUT}: base and finetune are not mappings: {_AGAIN}")
    for key, default in _DEFAULTS.items() if own else ():
        value = settings.get(key)
        kinds = (int, float) if key == "alpha" else type(default)
        of_texts = not isinstance(value, list) or all(isinstance(one, str) for one in value)
        in_bounds = not isinstance(value, int | float) or 0 < value < 1e38
        if not isinstance(value, kinds) or not of_texts or not in_bounds:
            raise ValueError(
                f"{path / ABOUT}: finetune.{key}={value!r} is no setting of an adapter: {_AGAIN}"
            )
    return about


def _rank_of(branch: Branch, stored: Mapping[str, StoredTensor], path: Path) -> int:
    """Return the rank of a branch in PEFT's file; 0 where it has none."""
    there = [name for name in (branch.their_a, branch.their_b) if name in stored]
    if not there:
        return 0
    if len(there) == 1:
        (missing,) = {branch.their_a, branch.their_b} - set(there)
        raise RuntimeError(f"{path / peft_format.WEIGHTS}: lacks the tensor {missing}")
    rank = stored[branch.their_a].shape[0]
    for name, wanted in ((branch.their_a, (rank, branch.inner)), (branch.their_b, (branch.whole, rank))):
        if stored[name].shape != wanted:
            raise RuntimeError(
                f"{path / peft_format.WEIGHTS}: {name} is {list(stored[name].shape)}, where this model's "
                f"layer needs {list(wanted)}: an adapter for another base?"
            )
    return rank
