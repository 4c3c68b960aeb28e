"""The tokenizer of an exported model: files that `AutoTokenizer` reads, and which of its tokens are special.

tokenizer.json is the run's, byte for byte: with it `transformers` gives the ids that the model was trained
on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data.tokenizer import loading
from data.tokenizer.folders import CONFIG, TOKENIZER, files_beside
from trainer.trained.ends import named_end

MAP = "special_tokens_map.json"

_USUAL = {
    "pad_token": ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>"),
    "mask_token": ("[MASK]", "<mask>", "<|mask|>"),
    "cls_token": ("[CLS]", "<cls>"),
    "sep_token": ("[SEP]", "<sep>"),
    "unk_token": ("[UNK]", "<unk>", "<|unknown|>"),
}


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tokenizer.

    tokens: their name in `transformers`, such as "eos_token" → token.
    ids: "eos_token_id" … → id, of those that a model's config names.
    ends: ids at which a text that is generated has ended; empty where they are not looked for.
    """

    tokens: Mapping[str, str]
    ids: Mapping[str, int]
    ends: Sequence[int] = ()


def special_tokens(tokenizer: Tokenizer, eos: int, *, template: bool) -> SpecialTokens:
    """Find the special tokens.

    eos: the id between documents.
    template: whether the tokenizer's template stood around each document: its first id begins a text. Without
        one the separator does.
    """
    before = loading.template(tokenizer, eos)[0] if template else []
    found: dict[str, str] = {}
    for name, number in (("bos_token", before[0] if before else eos), ("eos_token", eos)):
        if (token := tokenizer.id_to_token(number)) is not None:
            found[name] = token
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_token")
    if unknown is None and isinstance(model.get("unk_id"), int):  # Unigram
        unknown = tokenizer.id_to_token(model["unk_id"])
    if unknown:
        found["unk_token"] = unknown
    for name, usual in _USUAL.items():
        known = next((token for token in usual if tokenizer.token_to_id(token) is not None), None)
        if known and name not in found:
            found[name] = known
    of_config = ("bos_token", "eos_token", "pad_token", "cls_token", "sep_token", "mask_token")
    numbers = {f"{name}_id": tokenizer.token_to_id(found[name]) for name in of_config if name in found}
    return SpecialTokens(found, {name: number for name, number in numbers.items() if number is not None})


def tokenizer_files(
    content: bytes, special: SpecialTokens, *, context: int, origins: Sequence[Path]
) -> dict[str, bytes]:
    """Return name → content of the tokenizer's files.

    content: the run's tokenizer.json.
    context: tokens of a training sequence.
    origins: folders whose files say how their tokenizer is used: the Hugging Face folder that the run began
        from, the corpora. Those of the first with the same tokenizer.json are kept: a chat template may be
        among them.
    """
    files = {TOKENIZER: content}
    for origin in origins:
        if _same(origin / TOKENIZER, content) and (found := files_beside(origin / TOKENIZER)):
            return files | found
    settings: dict[str, Any] = {
        # The class of any tokenizer.json; a model's own would build its tokenizer anew.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        **special.tokens,
    }
    files[CONFIG] = _json(settings)
    files[MAP] = _json(dict(special.tokens))
    return files


def ends_of(
    files: Mapping[str, bytes], special: SpecialTokens, tokenizer: Tokenizer, message: int | None
) -> SpecialTokens:
    """Return `special` with its `ends`: what the tokenizer's files call eos_token, which in a model of
    conversations ends a message; what the run's chat template writes behind one, `message`; and the token
    between documents.
    """
    said = named_end(files.get(CONFIG, b"{}"), tokenizer)
    ends = [one for one in (said, message, special.ids.get("eos_token_id")) if one is not None]
    return replace(special, ends=list(dict.fromkeys(ends)))


def _same(file: Path, content: bytes) -> bool:
    try:
        return file.read_bytes() == content
    except OSError:
        return False


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
