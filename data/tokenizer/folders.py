"""The tokenizer of a Hugging Face folder: its tokenizer.json, or what older folders have instead.

Older folders hold a vocabulary alone: vocab.txt (WordPiece), vocab.json and merges.txt (BPE) or a
SentencePiece model. How text becomes pieces is then in the code of their class in `transformers`, which
makes a tokenizer.json of them, if it is installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
OLDER = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
"""Vocabularies of folders without a tokenizer.json."""
CONFIG = "tokenizer_config.json"
BESIDES = (CONFIG, "special_tokens_map.json", "chat_template.jinja", "added_tokens.json")
"""Files beside tokenizer.json that say how a tokenizer is used."""


def files_beside(tokenizer: Path) -> dict[str, bytes]:
    """Return name → content of the files that say how a tokenizer.json is used; none where it lies alone."""
    if tokenizer.name != TOKENIZER or not (tokenizer.parent / CONFIG).is_file():
        return {}
    files = (tokenizer.with_name(name) for name in BESIDES)
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def tokenizer_file(given: Path | str | None) -> Path | str | None:
    """Return the tokenizer.json of a folder that has one; anything else as it was given."""
    if given is not None and (file := Path(given) / TOKENIZER).is_file():
        return file
    return given


def converted(folder: Path) -> Tokenizer:
    """Make the tokenizer of a folder without a tokenizer.json.

    ValueError, one line, where the folder has none, `transformers` is not installed, or does not know it.
    """
    found = [name for name in OLDER if (folder / name).is_file()]
    if not found:
        raise ValueError(
            f"tokenizer {folder} is a folder without {TOKENIZER} or an older vocabulary: give a "
            "tokenizer.json, or a Hugging Face folder that has one"
        )
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            f"tokenizer {folder}: holds {found[0]} and no {TOKENIZER}: transformers makes one of it, and is "
            "not installed: pip install transformers sentencepiece"
        )
    from transformers import AutoTokenizer

    try:
        made: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return Tokenizer.from_str(made.backend_tokenizer.to_str())
    except Exception as error:  # whatever the class of the folder raises
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"tokenizer {folder}: transformers makes no {TOKENIZER} of its {found[0]}: {reason}"
        ) from None
