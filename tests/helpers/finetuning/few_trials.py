"""A comparison of `germinal transfer` with few and short fine-tunings, of made-up pictures."""

from pathlib import Path
from typing import Any

import yaml

from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from pictures import write_folders

SIZES = {"image_size": 16, "patch_size": 8, "layers": 1, "hidden": 16, "heads": 2}
DATA = {"seq_len": 1, "packing": "one", "image_size": 16}


def prepare_pictures(folder: Path) -> Path:
    """Pictures of three classes as corpora in FOLDER/corpus/train and heldout."""
    write_folders(folder / "in", ("cat", "dog", "yak"), 16)
    prepare(
        [str(folder / "in")], folder / "corpus", tokenizer="bytes", recipe=Recipe(block_documents=5),
        heldout=0.2, workers=1, progress=False,
    )  # fmt: skip
    return folder / "corpus"


def write_comparison(folder: Path, corpus: Path, **changes: Any) -> Path:
    """The config of a comparison in FOLDER/few, with other values of some keys."""
    config = {
        "name": "few",
        "run_dir": str(folder / "few"),
        "labelled": str(corpus / "train"),
        "heldout": str(corpus / "heldout"),
        "labels": [4, 6],
        "seeds": 2,
        "methods": ["full", "lora"],
        "validation": 8,
        "rates": {"full": [1.0e-3, 1.0e-2], "lora": [1.0e-2]},
        "rates_at": [6],
        "rate_draws": 1,
        "pretrain": {
            "model": {"kind": "vision", "head": "pixels", **SIZES},
            "objective": {"kind": "masked_images", "mask_ratio": 0.5, "mask_patch": 8},
            "data": {**DATA, "sources": [{"path": str(corpus / "train")}]},
            "train": {"steps": 2, "global_batch": 4, "micro_batch": 4},
        },
        "finetune": {
            "model": {"head": "classes", "classes": 3},
            "objective": {"kind": "classification"},
            "data": DATA,
            "train": {"steps": 2, "global_batch": 5, "micro_batch": 5},
        },
    }
    folder.mkdir(exist_ok=True)
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return path
