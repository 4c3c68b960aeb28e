"""What fine-tuning has added to a model, as a folder of its own: PEFT's format, or ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from common.files import write_durably
from trainer.checkpoint.folder import STATE
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import read_tensor
from trainer.config.run_config import RunConfig
from trainer.huggingface import folder as folders
from trainer.huggingface import peft_format
from trainer.huggingface.adapter import ABOUT, OWN_WEIGHTS, SETTINGS
from trainer.huggingface.choose import for_export
from trainer.huggingface.mapping import Mapped, by_theirs
from trainer.models.config import init_from

_MODEL = "model."


def write_adapter(cfg: RunConfig, checkpoint: Path, out: Path) -> str:
    """Write the trained parameters of a run with `finetune.method` lora or adapters into the folder `out`,
    with the hash of the base; return "PEFT" or "germinal", the format. PEFT's needs LoRA, and an architecture
    of transformers for the model.

    checkpoint: of the run, verified.

    ValueError where the run adds nothing to its model.
    """
    if not cfg.finetune.adds:
        raise ValueError(f"finetune.method={cfg.finetune.method}: this run has no adapter: export the model")
    manifest = read_manifest(checkpoint)
    names = [name for name in manifest.tensors if name.startswith(_MODEL)]
    tensors = {name.removeprefix(_MODEL): read_tensor(checkpoint, name) for name in sorted(names)}
    identity = json.loads((checkpoint / STATE).read_bytes())["identity"]
    about = {
        "finetune": {key: getattr(cfg.finetune, key) for key in SETTINGS},
        "base": identity["base"],
        "step": manifest.step,
    }
    try:
        mapped = for_export(cfg.model, cfg.data.seq_len, cfg.objective.kind)[0].mapped(cfg.model)
    except ValueError:
        mapped = []
    out.mkdir(parents=True, exist_ok=True)
    known = {one.ours for one in mapped}
    if mapped and cfg.finetune.method == "lora" and all(n in known or ".lora." in n for n in tensors):
        base = init_from(cfg.model)
        _write_peft(cfg, tensors, mapped, base if folders.is_folder(Path(base)) else "", out)
        written = "PEFT"
    else:
        write_durably(out / OWN_WEIGHTS, save(tensors, metadata={"format": "pt"}))
        written = "germinal"
    write_durably(out / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    return written


def _write_peft(
    cfg: RunConfig, tensors: dict[str, Tensor], mapped: list[Mapped], base: str, out: Path
) -> None:
    layers: dict[str, list[peft_format.Branch]] = {}
    for branch in peft_format.branches(mapped):
        if branch.a in tensors:
            layers.setdefault(branch.theirs, []).append(branch)
    theirs: dict[str, Tensor] = {}
    for inside in layers.values():
        theirs |= _joined(inside, tensors, cfg.finetune.rank)
    whole = {name: parts for name, parts in by_theirs(mapped).items() if parts[0].ours in tensors}
    for name, parts in whole.items():
        (one,) = parts
        theirs[peft_format.PREFIX + name] = (
            tensors[one.ours].mT if one.transposed else tensors[one.ours].view(one.whole)
        )
    settings: dict[str, Any] = peft_format.settings_for(
        layers,
        rank=cfg.finetune.rank,
        alpha=cfg.finetune.alpha,
        base=base,
        saved=sorted({name.rpartition(".")[0] for name in whole}),
    )
    contiguous = {name: tensor.contiguous() for name, tensor in theirs.items()}
    write_durably(out / peft_format.WEIGHTS, save(contiguous, metadata={"format": "pt"}))
    write_durably(out / peft_format.CONFIG, (json.dumps(settings, indent=2) + "\n").encode())


def _joined(inside: list[peft_format.Branch], tensors: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return the matrices of one layer of theirs. Several branches lie side by side: A one under the other, B
    as blocks, each in its rows and its columns.
    """
    first = tensors[inside[0].b]
    b = first.new_zeros(inside[0].whole, rank * len(inside))
    for number, one in enumerate(inside):
        b[one.first : one.first + one.outer, rank * number : rank * (number + 1)] = tensors[one.b]
    return {
        inside[0].their_a: torch.cat([tensors[one.a] for one in inside]),
        inside[0].their_b: b,
    }
