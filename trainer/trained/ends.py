"""Which tokens end what a model writes, besides the one between documents: those that end a message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data.corpus.manifest import TEMPLATE_FILE
from data.prepare.tasks.templates import BEGIN, END, written
from data.tokenizer.folders import CONFIG, TOKENIZER
from data.tokenizer.prompting import Prompting
from trainer.config import first_keys, of_folder
from trainer.config.run_config import RunConfig
from trainer.huggingface import folder as folders
from trainer.models.config import init_from


def ends_of(cfg: RunConfig, run: Path, texts: Prompting) -> frozenset[int]:
    """Return the ids at which a text of this model has ended.

    Of a Hugging Face folder, those of its generation_config.json. Of a run, those that an export of it
    states there.

    run: the run folder, or the Hugging Face folder.
    """
    if of_folder.is_folder(run):
        path = run / "generation_config.json"
        said = folders.read_json(path).get("eos_token_id") if path.is_file() else None
        found = said if isinstance(said, list) else [said]
        return frozenset([texts.separator, *(one for one in found if type(one) is int)])
    named = named_end(_config(run, cfg), texts.tokenizer)
    ends = (texts.separator, named, template_end(run, texts))
    return frozenset(one for one in ends if one is not None)


def beginning_of(cfg: RunConfig, run: Path, texts: Prompting, before: Sequence[int]) -> int:
    """Return the id that stands before a text without a context, as in `transformers` on an export of the
    run: the tokenizer's bos_token, or where its files name none, its eos_token.

    run: the run folder, or the Hugging Face folder.
    before: what the tokenizer's template puts before a text.
    """
    config = _config(run, cfg)
    for name in ("bos_token", "eos_token"):
        if (found := named_end(config, texts.tokenizer, name)) is not None:
            return found
    return before[0] if before else texts.separator


def named_end(config: bytes, tokenizer: Tokenizer, name: str = "eos_token") -> int | None:
    """Return the id of the `eos_token` that a tokenizer_config.json names, which in a model of conversations
    ends a message, or of another special token; None where it names none that the tokenizer has.
    """
    named: Any = json.loads(config).get(name)
    content = named.get("content") if isinstance(named, dict) else named
    return tokenizer.token_to_id(content) if isinstance(content, str) else None


def template_end(run: Path, texts: Prompting) -> int | None:
    """Return the id of the special token that the run's chat template writes behind an answer; None where
    the run has no template, or one that writes no such token.
    """
    if not (file := run / TEMPLATE_FILE).is_file():
        return None
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"{BEGIN}b{END}"}]
    separator = texts.tokenizer.id_to_token(texts.separator) or ""
    try:
        whole = written(file.read_text(encoding="utf-8"), said, str(file), separator=separator, beginning="")
    except ValueError:  # it refuses such a conversation
        return None
    behind = whole.rpartition("b" + END)[2].replace(END, "").lstrip()
    special = {one.content: n for n, one in texts.tokenizer.get_added_tokens_decoder().items() if one.special}
    found = max((content for content in special if behind.startswith(content)), key=len, default=None)
    return None if found is None else special[found]


def origin(cfg: RunConfig) -> first_keys.Origin | None:
    """Return what the run began from, if it is still there."""
    try:
        return first_keys.origin(init_from(cfg.model)) if init_from(cfg.model) else None
    except ValueError:
        return None


def origins(cfg: RunConfig) -> list[Path]:
    """Return the folders that may say how the tokenizer is used: the Hugging Face folder that the run began
    from, and its corpora; as far as they are still there.
    """
    corpora = [Path(source.path) for source in cfg.data.sources]
    found = origin(cfg)
    return corpora if found is None or found.is_run else [found.folder, *corpora]


def _config(run: Path, cfg: RunConfig) -> bytes:
    """The tokenizer_config.json of a Hugging Face folder; for a run, that of the first of its origins that
    has the run's tokenizer and such a file. Empty JSON where there is none.
    """
    if of_folder.is_folder(run):
        return (run / CONFIG).read_bytes() if (run / CONFIG).is_file() else b"{}"
    own = (run / TOKENIZER).read_bytes()
    for folder in origins(cfg):
        if not ((folder / TOKENIZER).is_file() and (folder / CONFIG).is_file()):
            continue
        if (folder / TOKENIZER).read_bytes() == own:
            return (folder / CONFIG).read_bytes()
    return b"{}"
