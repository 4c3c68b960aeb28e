"""Texts as a trained model is asked about them: they begin as its training documents did."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from data.tokenizer import loading


@dataclass(frozen=True)
class Prompting:
    """How texts become ids for a trained model.

    tokenizer: the one that the model was trained with; what looks like a special token in a text is text.
    separator: the id between two documents.
    template: whether the tokenizer's template stood around each training document.
    """

    tokenizer: Tokenizer
    separator: int
    template: bool

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = True

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The template's ids before and behind the text of each training document."""
        return loading.template(self.tokenizer, self.separator) if self.template else ([], [])

    @property
    def beginning(self) -> list[int]:
        """What stood before the text of each training document: the separator, and the template's ids."""
        return [self.separator, *self.around[0]]

    def document(self, text: str) -> list[int]:
        """Return the ids of a text as a training document, the separator before it included."""
        return [*self.beginning, *self.encode(text), *self.around[1]]

    @cached_property
    def vocab(self) -> int:
        """Ids of text are below this number."""
        return loading.vocab_size(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without the template."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def parts(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context, and those that follow where `continuation` is written behind it.

        White space at the context's end is taken for the beginning of the continuation, as most tokenizers
        join it with the word that follows. So do lm-evaluation-harness's models.
        """
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        before = self.encode(context) if context else []
        return before, self.encode(context + continuation)[len(before) :]
