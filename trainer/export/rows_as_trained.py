"""A tokenizer.json whose template makes of a text the row that a task was trained on.

A row of a text alone is a separator, the ids before, the text and the ids behind. A published tokenizer has a
template of its own, or none: with it `transformers` would feed other ids than training and evaluation did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.tokenizer.folders import CONFIG, TOKENIZER
from data.tokenizer.prompting import Prompting

_TEMPLATES = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
_OF_CLASSES = ("add_bos_token", "add_eos_token", "auto_map")
"""Keys of tokenizer_config.json by which `transformers` changes or replaces the template."""


def rows_as_trained(
    files: Mapping[str, bytes], prompting: Prompting, *, asks: bool, context: int
) -> dict[str, bytes]:
    """Return the tokenizer's files with such a template, in which all types of tokens are 0, as in training.

    files: name → content, as `tokenizer_files` returns them.
    prompting: how texts became ids.
    asks: of two texts the first is a question: a separator is between them. Else each has the template's ids.
    context: tokens of a training row.
    """
    start, (before, behind) = prompting.separator, prompting.around
    between = [start] if asks else [*behind, *before]
    names = {number: _token(number, prompting) for number in (start, *before, *behind)}

    def special(numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": names[number], "type_id": 0}} for number in numbers]

    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    beginning, end = special([start, *before]), special(behind)
    ours = {
        "type": "TemplateProcessing",
        "single": [*beginning, first, *end],
        "pair": [*beginning, first, *special(between), second, *end],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]} for number, name in names.items()
        },
    }
    content = json.loads(files[TOKENIZER])
    kept = [one for one in _steps(content.get("post_processor")) if one["type"] not in _TEMPLATES]
    content["post_processor"] = {"type": "Sequence", "processors": [*kept, ours]} if kept else ours
    # A model's own class would build its own template. Our readers know the separator by eos_token.
    settings = {
        **{key: value for key, value in json.loads(files[CONFIG]).items() if key not in _OF_CLASSES},
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "eos_token": names[start],
    }
    return {
        **files,
        TOKENIZER: json.dumps(content, ensure_ascii=False).encode(),
        CONFIG: (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def _steps(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if processor is None:
        return []
    return list(processor["processors"]) if processor["type"] == "Sequence" else [processor]


def _token(number: int, prompting: Prompting) -> str:
    token = prompting.tokenizer.id_to_token(number)
    assert token is not None, f"no token of id {number}"
    return str(token)
