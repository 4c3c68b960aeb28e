"""Corpora, first models and settings of the comparison with Hugging Face's Trainer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from data.prepare.embedded.proteins import write_families
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from trainer.export.export import export
from tuned_tasks import BERT, LLAMA, VIT, Setting
from whole_runs import train_here

# Rate and steps of each score.
SCORED = {
    "BERT, all weights": (1e-3, 80),
    "BERT, LoRA": (5e-3, 150),
    "Llama, LoRA": (5e-3, 60),
    "ViT, all weights": (1e-3, 150),
}
NAMES = [*SCORED]
ABOUT = {
    "tasks": "BERT: which of 4 families a made-up protein is of; Llama: the next token of these, by "
    "a model of Python's library; ViT: digits, 32 × 32 pixels",
    "scores": "2 layers of 64; BERT and Llama pre-trained for 150 steps; 60 to 150 steps of 16 rows; five "
    "seeds, of the order of rows, the new layer and LoRA's matrices; within: the means differ by no more "
    "than the larger standard deviation of the two sides",
    "steps": "4 layers of 256, weights as drawn; 8 rows (ViT: 16); fp32, sdpa, fused AdamW, clipped at 1, "
    "rate falling linearly; LoRA of rank 4 beside all linear layers",
}
VOCAB = 512  # of the proteins' tokenizer: a token is some residues
CLASSES = {"BERT": 4, "ViT": 10, "Llama": 0}
PRE_TRAINED: dict[str, dict[str, Any]] = {
    "BERT": {
        "model": {
            "kind": "encoder", "norm_place": "post", "activation": "gelu", "biases": True, "window": 0,
            "positions": "learned", "max_positions": 128, "token_types": 2, "norm_eps": 1e-12,
            "init_std": 0.05, "vocab": VOCAB + 1,
        },
        "objective": {"kind": "masked_lm"},
        "data": {"packing": "one"},
        "corpus": "families",
    },
    "Llama": {
        "model": {"kind": "decoder"}, "objective": {"kind": "causal_lm"}, "data": {}, "corpus": "python",
    },
}  # fmt: skip
SIZES = {"layers": 2, "hidden": 64, "heads": 4, "vocab": 2048}
LARGE = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4}
STOCK: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT": (
        "BertForMaskedLM",
        "BertConfig",
        {"vocab_size": 2048, "intermediate_size": 1024, "max_position_embeddings": 128, "pad_token_id": 2047},
    ),
    "Llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"vocab_size": 2048, "intermediate_size": 768, "num_key_value_heads": 4},
    ),
    "ViT": (
        "ViTForImageClassification",
        "ViTConfig",
        {"image_size": 32, "patch_size": 4, "intermediate_size": 1024, "num_labels": 10},
    ),
}
DROPS = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)


def make(home: Path) -> None:
    """Make what is not there yet."""
    home.mkdir(parents=True, exist_ok=True)
    if not (python := home / "python").exists():
        prepare(["embedded:python"], python, workers=1, progress=False)
    if not (digits := home / "digits").exists():
        prepare(["embedded:digits"], digits, workers=1, progress=False)
    if not (families := home / "families").exists():
        write_families(home / "fasta")
        for surplus in sorted((home / "fasta").iterdir())[CLASSES["BERT"] :]:
            shutil.rmtree(surplus)
        made: dict[str, Any] = {"workers": 1, "progress": False, "recipe": Recipe(label_folder=1)}
        prepare([str(home / "fasta")], families, train_tokenizer=VOCAB, heldout=0.2, **made)
    for name, sections in PRE_TRAINED.items():
        if not (home / f"{name}-small").exists():
            _pre_train(home, name, sections)
    if not (proteins := home / "proteins").exists():
        prepare(["embedded:proteins"], proteins, tokenizer=home / "Llama-small", workers=1, progress=False)
    for name in STOCK:
        if not (home / f"{name}-large").exists():
            _draw(name, LARGE, home / f"{name}-large")
    if not (home / "ViT-small").exists():
        small = {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "patch_size": 8,
            "initializer_range": 0.1,  # with 0.02, roundings decide when a loss leaves its first plateau
        }
        _draw("ViT", small, home / "ViT-small")


def _pre_train(home: Path, name: str, sections: Mapping[str, Any]) -> None:
    corpus = home / sections["corpus"]
    config = {
        "name": f"{name}-run",
        "run_dir": str(home / f"{name}-run"),
        "objective": sections["objective"],
        "model": SIZES | sections["model"],
        "data": {
            "sources": [{"path": str(corpus / "train")}],
            "seq_len": 128,
            **sections["data"],
        },
        "optim": {"lr": 2e-3, "warmup_steps": 10},
        "train": {"steps": 150, "global_batch": 16, "micro_batch": 16},
        "checkpoint": {"every": 10**6},
        "track": {"tools": ["jsonl"]},
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    train_here(path)
    export(home / f"{name}-run", home / f"{name}-small", step=None, dtype="fp32", shard_bytes=10**9)


def _draw(name: str, sizes: Mapping[str, float], folder: Path) -> None:
    import transformers

    cls, config, own = STOCK[name]
    drops = {} if name == "Llama" else DROPS
    torch.manual_seed(0)
    keys = {**own, **sizes, **drops}
    getattr(transformers, cls)(getattr(transformers, config)(**keys)).save_pretrained(folder)


def small(home: Path, name: str) -> Setting:
    """The setting of a score."""
    lr, steps = SCORED[name]
    return _setting(home, name, "small", steps=steps, batch=16, lr=lr)


def large(home: Path, name: str, *, steps: int) -> Setting:
    """The setting of a time or of memory."""
    lr = 5e-3 if name.endswith("LoRA") else 2e-3
    return _setting(home, name, "large", steps=steps, batch=16 if name.startswith("ViT") else 8, lr=lr)


def _setting(home: Path, name: str, size: str, *, steps: int, batch: int, lr: float) -> Setting:
    model, _, method = name.partition(", ")
    task, corpus = {
        "BERT": (BERT, "families"),
        "Llama": (LLAMA, "proteins"),
        "ViT": (VIT, "digits"),
    }[model]
    lora = method == "LoRA"
    return Setting(
        task,
        home / f"{model}-{size}",
        home / corpus,
        lora,
        lr=lr,
        steps=steps,
        batch=batch,
        seq_len=4 if model == "ViT" else 128,
        image_size=32 if model == "ViT" else 0,
        classes=CLASSES[model],
        weight_decay=0.0 if model == "ViT" else 0.01,  # the Trainer lets tables of positions decay, too
        train={"eval_documents": 256, "log_every": 10},
    )
