"""config.json of a Hugging Face folder, read key by key.

A key that changes a model's arithmetic and is passed over in silence gives wrong numbers without an error. So
each family names the keys that it reads, those that must have one value, and those that change nothing;
`Fields.finish` refuses every other key that is switched on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Keys that change no forward of a model that is trained here: names, training's own, generation, files.
HARMLESS = frozenset(
    (
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "name_or_path"),
        *("_name_or_path", "_commit_hash", "_attn_implementation", "_attn_implementation_autoset"),
        *("attn_implementation", "_experts_implementation", "_flash_attn_2_enabled", "use_flash_attn"),
        *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "use_return_dict"),
        *("torchscript", "use_bfloat16", "tf_legacy_loss", "gradient_checkpointing", "output_past"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
        *(
            "unk_token_id",
            "decoder_start_token_id",
            "tokenizer_class",
            "prefix",
            "keys_to_ignore_at_inference",
        ),
        *("task_specific_params", "problem_type", "finetuning_task", "id2label", "label2id", "num_labels"),
        # Dropout: an exported model does not say that it was trained without, and here there is none.
        *("attention_dropout", "hidden_dropout", "dropout", "classifier_dropout", "layerdrop"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "embd_pdrop", "attn_pdrop", "resid_pdrop"),
        "transformers.js_config",  # of another program
        # Of `generate`, from before generation_config.json.
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
        *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
        *("num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id"),
        *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
        *("suppress_tokens", "begin_suppress_tokens"),
        # The same sums in another order.
        *("chunk_size_feed_forward", "pretraining_tp"),
    )
)
_OFF: tuple[Any, ...] = (None, False, {}, [], "")


class Fields:
    """The keys of a mapping in config.json.

    where: the file, and the key of the mapping in it, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where
        self._read: set[str] = set()

    def error(self, key: str, what: str) -> ValueError:
        """Return the error of a key, with its value."""
        return ValueError(f"{self._where}: {key}={self._values.get(key)!r}: {what}")

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self._values.get(key) is not None

    def keys(self) -> Iterable[str]:
        """All keys."""
        return self._values.keys()

    def is_null(self, key: str) -> bool:
        """Whether the key is there as null, which is not its default."""
        return key in self._values and self._values[key] is None

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return an integer of at least `least`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, f"not an integer of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0, as all of a model are; JSON as Python reads it has NaN, too."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise self.error(key, "not a finite number")
        if not value > 0:
            raise self.error(key, "not above 0")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "neither true nor false")
        return value

    def choice(self, key: str, default: str, known: Mapping[str, Any]) -> Any:
        """Return what `known` has for the key's value."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.error(key, f"not supported: known here: {', '.join(known)}")
        return known[value]

    def listed(self, key: str) -> list[Any] | None:
        """Return a list; None where the key is left out."""
        value = self._value(key, None, needed=False)
        if value is not None and not isinstance(value, list):
            raise self.error(key, "not a list")
        return value

    def listed_or_number(self, key: str) -> Any:
        """Return a value as it is; None where the key is left out."""
        return self._value(key, None, needed=False)

    def size(self, key: str, default: int) -> int:
        """Return the number of entries of a mapping; `default` where the key is left out."""
        value = self._value(key, None, needed=False)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "not a mapping")
        return len(value) if value else default

    def inner(self, key: str) -> Fields:
        """Return the mapping under a key; an empty one where the key is left out."""
        value = self._value(key, {}, needed=False)
        if not isinstance(value, dict):
            raise self.error(key, "not a mapping")
        return Fields(value, f"{self._where}: {key}")

    def must_be(self, key: str, *allowed: Any) -> None:
        """Refuse the key with a value that is not among `allowed`; left out, it has the first."""
        value = self._values.get(key, allowed[0])
        self._read.add(key)
        if value not in allowed:
            raise self.error(key, f"not supported: only {allowed[0]!r} is")

    def harmless(self, *keys: str) -> None:
        """Set keys aside that change no forward."""
        self._read.update(keys)

    def finish(self) -> None:
        """ValueError with the first key that is switched on and was neither read nor set aside."""
        for key, value in self._values.items():
            if key not in self._read and key not in HARMLESS and value not in _OFF:
                raise self.error(
                    key,
                    "not supported: the key is not known here and may change the model's arithmetic (if it "
                    "does not, take it out of a copy of the folder's config.json)",
                )

    def _value(self, key: str, default: Any, needed: bool = True) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        value = default if value is None else value
        if value is None and needed:
            raise ValueError(f"{self._where}: lacks the key {key}")
        return value
