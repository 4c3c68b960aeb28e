"""adapter_config.json and germinal.json with values of other kinds: one line each, with the key."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.huggingface import adapter, peft_format
from trainer.models.decoder.config import DecoderConfig

MODEL = DecoderConfig(layers=1, hidden=16, heads=2, vocab=32)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("r", None, "r=None: not a number"),
        ("r", "x", "r='x': not an integer of at least 1"),
        ("r", 2.7, "r=2.7: not an integer"),
        ("r", 0, "r=0: not an integer of at least 1"),
        ("lora_alpha", None, "lora_alpha=None: not a number"),
        ("lora_alpha", float("nan"), "not a finite number"),
        ("lora_alpha", -8, "lora_alpha=-8: not above 0"),
        ("rank_pattern", ["a"], "rank_pattern=['a']: not a mapping"),
        ("rank_pattern", {"q": "x"}, "rank_pattern: q='x': not an integer"),
        ("rank_pattern", {"(": 4}, "rank_pattern={'(': 4}: '(' is no regular expression"),
        ("alpha_pattern", {"*": 4}, "'*' is no regular expression: nothing to repeat"),
        ("alpha_pattern", {"q": None}, "alpha_pattern: lacks the key q"),
        ("alpha_pattern", {"q": float("inf")}, "alpha_pattern: q=inf: not a finite number"),
        ("modules_to_save", 3, "modules_to_save=3: not a list"),
        ("modules_to_save", [3], "modules_to_save=[3]: not a list of names"),
        ("use_rslora", "yes", "use_rslora='yes': neither true nor false"),
        ("init_lora_weights", ["a"], "init_lora_weights=['a'] is not supported"),
    ],
)
def test_a_key_of_pefts_with_a_wrong_value(key: str, value: Any, message: str, tmp_path: Path) -> None:
    (file := tmp_path / peft_format.CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, key: value}))
    with pytest.raises(ValueError, match=r"^[^\n]{1,300}$") as caught:
        peft_format.read_settings(tmp_path)
    assert str(file) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("name", [peft_format.CONFIG, adapter.ABOUT])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"peft_type": "LO', ""])
def test_a_file_that_is_no_json(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^[^\n]*{name}: not JSON: "):
        adapter.open_adapter(tmp_path, MODEL)
