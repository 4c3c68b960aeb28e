"""A run's checkpoint → a folder that `transformers` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from common.files import write_durably
from trainer.checkpoint.folder import STATE, hash_file
from trainer.checkpoint.manifest import read_manifest
from trainer.config import of_folder, reading
from trainer.config.run_config import RunConfig
from trainer.export.card import Facts, card
from trainer.export.figures import read_evaluation
from trainer.export.new_folder import check_new, new_folder
from trainer.export.rows_as_trained import rows_as_trained
from trainer.export.tokenizer_files import SpecialTokens, ends_of, special_tokens, tokenizer_files
from trainer.export.weights import DTYPES, Written, write_weights
from trainer.first_weights.checkpoint_source import PREFIX
from trainer.first_weights.labels import labels_at
from trainer.first_weights.open import whole_weights
from trainer.folder import run_folder
from trainer.huggingface import choose
from trainer.huggingface.families import labels
from trainer.huggingface.families.family import Family
from trainer.huggingface.folder import CONFIG, PREPROCESSOR
from trainer.huggingface.mapping import by_theirs
from trainer.models.config import NEXT_TOKEN
from trainer.trained.adapter import write_adapter
from trainer.trained.checkpoints import checkpoint_of, newest_checkpoint, read_newest
from trainer.trained.ends import origin, origins, template_end
from trainer.trained.tokenizer import load_prompting

TRANSFORMERS = "5.0.0"
"""The version whose config.json this is."""
_ROWS_OF_TEXTS = ("text_classes", "token_classes", "text_pair")
"""Kinds of models whose training rows are one text each."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    architecture: the class of transformers that loads it.
    step: of the checkpoint.
    written: the weights.
    tokenizer: the class of transformers that loads its tokenizer.
    """

    architecture: str
    step: int
    written: Written
    tokenizer: str


def export(
    run: str | Path,
    out: Path,
    *,
    step: int | None,
    dtype: str,
    shard_bytes: int,
    merge: bool = False,
    evaluation: Path | None = None,
) -> Exported:
    """Write the checkpoint of `step`, else the newest that verifies, into the new folder `out`. Of a run that
    adds modules to a model, write these alone, unless they are merged (`trainer.trained.adapter`).

    The folder is written under another name beside `out` and renamed when it is whole and on disk; folders
    above it that are missing are made. The same parameters give the same bytes, whatever layout saved them.
    Memory: some 32 MiB, whatever the model.

    dtype: of the weights, a key of `weights.DTYPES`.
    shard_bytes: of a file of weights, at most; a larger tensor is alone in one.
    merge: add LoRA's branches to their matrices, and write the whole model.
    evaluation: a document of `germinal evaluate --out` on that step, for the model card.

    Raises:
        ValueError: `out` is there already or cannot be written, there is no checkpoint of that step, no
            architecture of transformers computes what this model does, or `evaluation` is of something else.
        RuntimeError: a checkpoint or the tokenizer is damaged, a value is not finite in that dtype, or the
            disk is full.
    """
    check_new(out)
    home = run_folder.find(run)
    cfg = reading.load(home)
    apart = cfg.finetune.adds and not merge
    if apart and dtype != "fp32":
        raise ValueError(f"--dtype {dtype}: an adapter alone is written as fp32: leave it out, or --merge")
    chosen = None if apart else choose.for_export(cfg.model, _context(cfg), cfg.objective.kind)

    def write(at: Path) -> Exported:
        evaluated = read_evaluation(evaluation, home, read_manifest(at).step) if evaluation else {}
        with new_folder(out) as draft:
            if chosen is None:
                exported, facts = _write_apart(draft, home, at, cfg)
            else:
                exported, facts = _write(draft, home, at, cfg, *chosen, dtype=dtype, shard_bytes=shard_bytes)
            write_durably(draft / "README.md", card(replace(facts, evaluation=evaluated)).encode())
        return exported

    if step is not None:
        return write(checkpoint_of(home, step))
    return read_newest(home, newest_checkpoint(home), write)[1]


def _write(
    folder: Path,
    home: Path,
    at: Path,
    cfg: RunConfig,
    family: Family,
    keys: Mapping[str, Any],
    *,
    dtype: str,
    shard_bytes: int,
) -> tuple[Exported, Facts]:
    """Write all but the card; return what the card says besides."""
    keys = {**keys, **_labels(keys, cfg, at)}
    _write_configs(folder, cfg, family, keys, _write_tokenizer(folder, home, at, cfg), dtype)
    step = read_manifest(at).step
    written = write_weights(
        folder,
        whole_weights(cfg, at),
        by_theirs(family.mapped(cfg.model)),
        dtype=dtype,
        shard_bytes=shard_bytes,
    )
    state = json.loads((at / STATE).read_bytes())
    tokenizer = "PreTrainedTokenizerFast" if family.own_tokenizer else "AutoTokenizer"
    facts = Facts(
        cfg, home, step, state, family.architecture, dtype, written.parameters, written.files, tokenizer
    )
    return Exported(family.architecture, step, written, tokenizer), facts


def _labels(keys: Mapping[str, Any], cfg: RunConfig, at: Path) -> Mapping[str, Any]:
    """Return the keys of the classes' names, where the model tells classes apart and names are known."""
    names = labels_at(at) or list(getattr(cfg.objective, "tags", ()))
    if not names or labels.NAMES not in keys:
        return {}
    numbered = list(keys[labels.NAMES].values())
    return labels.labels_to([*names, *numbered[len(names) :]])


def _write_tokenizer(folder: Path, home: Path, at: Path, cfg: RunConfig) -> SpecialTokens:
    """Write the tokenizer's files, where the model takes tokens; return its special tokens, and which of them
    end a text.
    """
    if not cfg.model.vocab:
        return SpecialTokens({}, {})
    prompting = load_prompting(home, at)
    special = special_tokens(prompting.tokenizer, prompting.separator, template=prompting.template)
    content = (home / "tokenizer.json").read_bytes()
    files = tokenizer_files(content, special, context=cfg.row_length, origins=origins(cfg))
    if cfg.model.kind in _ROWS_OF_TEXTS:
        asks = cfg.model.kind == "token_classes"
        files = rows_as_trained(files, prompting, asks=asks, context=cfg.row_length)
    for name, data in files.items():
        write_durably(folder / name, data)
    return ends_of(files, special, prompting.tokenizer, template_end(home, prompting))


def _write_configs(
    folder: Path, cfg: RunConfig, family: Family, keys: Mapping[str, Any], special: SpecialTokens, dtype: str
) -> None:
    """Write config.json, and the configs of generation and of pictures where the model has them."""
    if family.preprocessor is not None:
        _json(folder / PREPROCESSOR, family.preprocessor(cfg.model))
    # What is left out would be the ids of the published model.
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) | dict(special.ids)
    if "text_config" in keys:  # CLIP finds the token that it pools by its id
        if family.model_type == "clip" and ids["eos_token_id"] == 2:
            raise ValueError(
                "the token between documents has id 2, for which transformers pools another token of CLIP's "
                "texts: this run cannot be exported; prepare the corpus with a tokenizer whose separator has "
                "another id"
            )
        keys = {**keys, "text_config": {**keys["text_config"], **ids}}
    elif not cfg.model.vocab:
        ids = {}
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **keys,
        **ids,
        "dtype": str(DTYPES[dtype][1]).removeprefix("torch."),
        "transformers_version": TRANSFORMERS,
    }
    _json(folder / CONFIG, config)
    if NEXT_TOKEN in cfg.model.offers:
        pad = ids["pad_token_id"] if ids["pad_token_id"] is not None else ids["eos_token_id"]
        generation = {
            "bos_token_id": ids["bos_token_id"],
            "eos_token_id": special.ends if len(special.ends) > 1 else ids["eos_token_id"],
            "pad_token_id": pad,
            "transformers_version": TRANSFORMERS,
        }
        _json(folder / "generation_config.json", generation)


def _write_apart(folder: Path, home: Path, at: Path, cfg: RunConfig) -> tuple[Exported, Facts]:
    """Write what fine-tuning has added to a model; return what the card says besides."""
    format = write_adapter(cfg, at, folder)
    shapes = {name: one.shape for name, one in read_manifest(at).tensors.items() if name.startswith(PREFIX)}
    parameters = sum(prod(shape) for shape in shapes.values())
    step, state = read_manifest(at).step, json.loads((at / STATE).read_bytes())
    files = {file.name: hash_file(file) for file in sorted(folder.glob("*.safetensors"))}
    # Any number of tokens: the architecture does not hang on it.
    stock = choose.for_export(cfg.model, 1, cfg.objective.kind)[0].architecture if format == "PEFT" else ""
    facts = Facts(cfg, home, step, state, stock, "fp32", parameters, files, adapter=format)
    written = Written({}, 4 * parameters, parameters)
    return Exported(f"adapter in {format}'s format", step, written, ""), facts


def _context(cfg: RunConfig) -> int:
    """Return how many positions the model is said to read: a training row's, or more where the model that it
    began from is said to read more. A short fine-tuning makes no model's context shorter.
    """
    found = origin(cfg)
    if found is None:
        return cfg.row_length
    before = _context(reading.load(found.folder)) if found.is_run else of_folder.positions(found.folder)
    return max(cfg.row_length, before)


def _json(path: Path, values: Mapping[str, Any]) -> None:
    write_durably(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
