"""The tokenizer of a run, proven to be the one that a checkpoint was trained with; or of a Hugging Face
folder.
"""

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer

from data.tokenizer import loading
from data.tokenizer.prompting import Prompting
from trainer.checkpoint.folder import STATE
from trainer.huggingface import folder as folders
from trainer.models.config import ModelConfig


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


def prompting_of(folder: Path, model: ModelConfig) -> Prompting:
    """Return how texts become ids for the model of a Hugging Face folder; any way, where it takes no tokens.

    The separator is the token that the folder calls eos_token, else the usual one of its tokenizer; texts
    have the tokenizer's template, unless a folder that was exported from a run says that its documents had
    none. An export whose tokenizer ends a message with its eos_token has both tokens as ends of what is
    generated, and the run's separator in config.json.

    ValueError, one line, where the folder has no tokenizer, or its tokenizer no such token.
    """
    if not model.vocab:
        tokenizer = loading.given("bytes")
        return Prompting(tokenizer, loading.separator_id(tokenizer), template=False)
    tokenizer = loading.given(folder)
    named = folders.read_json(path) if (path := folder / "tokenizer_config.json").is_file() else {}
    begins, ends = (_id_of(named.get(name), tokenizer) for name in ("bos_token", "eos_token"))
    said = folders.read_config(folder).get("eos_token_id")
    ends = said if isinstance(said, int) and (ends is None or {said, ends} <= _ends(folder)) else ends
    if ends is None or tokenizer.id_to_token(ends) is None:
        ends = loading.separator_id(tokenizer)
    before, behind = loading.template(tokenizer, ends)
    template = begins in (None, before[0]) if before else bool(behind)
    return Prompting(tokenizer, ends, template)


def _ends(folder: Path) -> set[object]:
    """Return the ids that end what is generated, where generation_config.json has several."""
    path = folder / "generation_config.json"
    ends = folders.read_json(path).get("eos_token_id") if path.is_file() else None
    return set(ends) if isinstance(ends, list) else set()


def _id_of(token: object, tokenizer: Tokenizer) -> int | None:
    """Return the id of a token as tokenizer_config.json has it: a text, or an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(content) if isinstance(content, str) else None
