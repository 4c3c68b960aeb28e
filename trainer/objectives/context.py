"""What a run tells its objective: its seed, and how text became ids. Imports torch for one tensor only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainer.models.pictures import HasClasses
from trainer.objectives.config import ObjectiveConfig

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.models.config import ModelConfig

_SPACES = ("Ġ", "Ċ", "ĉ", "č", "▁", " ", "\n", "\t")
"""First characters of pieces that begin with white space: byte-level BPE's, SentencePiece's, plain ones."""


@dataclass(frozen=True)
class ObjectiveContext:
    """What an objective may know of its run besides its own keys.

    seed: the run's; for `trainer.objectives.draws`.
    seq_len: tokens of a row of the stream.
    vocab: the tokenizer's tokens; ids of the text are below it.
    eos: the id between two documents.
    tokenizer: reads the tokenizer's `tokenizer.json`; called only where an objective asks for what is in it.
        Empty bytes where there is none.
    model: the config of the model that is trained.
    classes: how many classes the corpora's labels tell apart; 0: they have none.
    tokens: how many the corpora have; None: not known.
    class_weights: of each class of the model in the loss; none: all are 1.
    """

    seed: int
    seq_len: int
    vocab: int
    eos: int
    tokenizer: Callable[[], bytes]
    model: ModelConfig | None = None
    classes: int = 0
    tokens: int | None = None
    class_weights: Sequence[float] = ()

    def ids(self, wanted: Sequence[Sequence[str]]) -> tuple[int, ...]:
        """Return an id for each token that `ObjectiveConfig.extra_ids` names: the tokenizer's, where it has a
        token of one of the names. Tokens that it does not have get the ids from `vocab` on, in order.
        """
        found, new = [], self.vocab
        for names in wanted:
            known = next((self._pieces[name] for name in names if name in self._pieces), None)
            found.append(new if known is None else known)
            new += known is None
        return tuple(found)

    def wrong_corpora(self, model_vocab: int, objective: ObjectiveConfig) -> str:
        """Return what is wrong where the corpora do not go with the model or the objective; "" where nothing
        is.
        """
        if model_vocab and self.tokens == 0:
            return (
                f"objective.kind={objective.kind}: the corpus has no text, which the model takes: prepare it "
                "from pictures with captions, or from texts"
            )
        return self.too_small(model_vocab, objective) or self.wrong_classes(objective)

    def too_small(self, model_vocab: int, objective: ObjectiveConfig) -> str:
        """Return what is wrong where the model's vocabulary does not hold the ids of the text and of the
        objective; "" where it does, or the model takes no tokens (0).
        """
        wanted = objective.extra_ids(self.seq_len)
        needed = max((self.vocab - 1, *(self.ids(wanted) if wanted else ()))) + 1
        if not model_vocab or needed <= model_vocab:
            return ""
        new = f", and objective.kind={objective.kind} adds {needed - self.vocab}" * (needed > self.vocab)
        return (
            f"model.vocab={model_vocab} is too small: the corpus's tokenizer has {self.vocab} tokens{new}: "
            f"set model.vocab to at least {needed}"
        )

    def wrong_classes(self, objective: ObjectiveConfig) -> str:
        """Return what is wrong where an objective of classes finds none in the corpora, or more than the
        model tells apart; "" where nothing is.
        """
        model: object = self.model
        if "classes" not in objective.needs or not isinstance(model, HasClasses):
            return ""
        if not self.classes:
            return (
                f"objective.kind={objective.kind}: the corpus has no classes: prepare it from a folder for "
                "each class, or with --label-field"
            )
        if self.classes <= model.classes:
            return ""
        return f"model.classes={model.classes}: the corpus has {self.classes} of them: raise it"

    @cached_property
    def special(self) -> Mapping[str, int]:
        """Name → id of the tokens that the tokenizer has beside its pieces of text, such as `[CLS]`."""
        if self._loaded is None:
            return {}
        added = self._loaded.get_added_tokens_decoder()
        return {token.content: int(number) for number, token in added.items()}

    def starts_word(self) -> Tensor:
        """Return for each id whether it begins a word, bool [vocab].

        By the pieces' spelling: WordPiece marks what continues a word, byte-level BPE and SentencePiece what
        begins with white space. What begins with neither a letter nor a digit, such as a comma, is a word of
        its own too, and so is a special token. Where a tokenizer marks nothing, as one of characters or
        bytes, every token is a word.
        """
        import torch

        starts = torch.ones(self.vocab, dtype=torch.bool)
        text = {name: number for name, number in self._pieces.items() if name not in self.special}
        continued = any(name.startswith("##") for name in text)
        spaced = sum(name.startswith(_SPACES[:5]) and len(name) > 1 for name in text) > 1
        if continued or spaced:
            for name, number in text.items():
                inside = name.startswith("##") if continued else _continues(name)
                starts[number] = not inside
        return starts

    @cached_property
    def _loaded(self) -> Any:
        """The tokenizer; None where there is none."""
        if not (content := self.tokenizer()):
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_str(content.decode())

    @cached_property
    def _pieces(self) -> Mapping[str, int]:
        return {} if self._loaded is None else self._loaded.get_vocab(with_added_tokens=True)


def _continues(piece: str) -> bool:
    return not piece.startswith(_SPACES) and piece[:1].isalnum()
