"""The tokenizer of a run, proven to be the one that a checkpoint was trained with."""

import hashlib
from pathlib import Path

from tokenizers import Tokenizer

from data.tokenizer import loading


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
