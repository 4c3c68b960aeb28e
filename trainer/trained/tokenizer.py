"""The tokenizer of a run, proven to be the one that a checkpoint was trained with."""

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer

from data.tokenizer import loading
from data.tokenizer.prompting import Prompting
from trainer.checkpoint.folder import STATE


def load_tokenizer(path: Path, sha256: str) -> Tokenizer:
    """Read a tokenizer.json whose bytes have the hash `sha256`; RuntimeError where they do not.

    The ids of another tokenizer would be read as other words, and nothing but the text would show it.
    """
    if not path.is_file():
        raise RuntimeError(f"{path} is missing: restore it from the corpus that the run was trained on")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise RuntimeError(
            f"{path} is not the tokenizer that the run was trained with: sha256 {found[:12]}…, where the "
            f"checkpoint has {sha256[:12]}…: restore it from the corpus"
        )
    return loading.load(path)


def load_prompting(run: Path, folder: Path) -> Prompting:
    """Return how texts become ids for the model of a checkpoint.

    Args:
        run: the run folder, which holds the tokenizer.
        folder: the checkpoint.

    Raises RuntimeError where the tokenizer is not the checkpoint's.
    """
    trained_with = json.loads((folder / STATE).read_bytes())["identity"].get("tokenizer")
    if not trained_with:
        raise RuntimeError(
            f"{folder} does not say which tokenizer it was trained with, as old checkpoints do not: "
            "train the run further, and the next one will"
        )
    tokenizer = load_tokenizer(run / "tokenizer.json", trained_with["sha256"])
    # Checkpoints that do not say were trained on documents without the template.
    return Prompting(tokenizer, trained_with["eos"], trained_with.get("template", False))
