"""Masked language modelling, with or without next-sentence prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from common.objective import IGNORED, ModelInputs
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.draws import Draw, numbers
from trainer.objectives.masked import choice
from trainer.objectives.masked.config import MaskedLMConfig
from trainer.objectives.masked.sentences import Rows, Sentences, lengths_of


@dataclass(frozen=True)
class _Tables:
    """What is known of the tokenizer's ids.

    text: those that are text, no separators and no special tokens, ascending.
    is_text: bool [vocab].
    starts_word: bool [vocab]; None where words do not matter.
    """

    text: Tensor
    is_text: Tensor
    starts_word: Tensor | None

    def to(self, device: torch.device) -> _Tables:
        starts = None if self.starts_word is None else self.starts_word.to(device)
        return _Tables(self.text.to(device), self.is_text.to(device), starts)


class MaskedLM:
    """A share of each row's tokens is predicted. A mask stands in the place of most of them, a random token
    in that of some; the others stay as they are.

    Separators, padding and special tokens are neither predicted nor put in. Which tokens are predicted is a
    function of the seed and the row's sequence number. There are `slots` places for them in every row, so
    that the head's work has one shape; a row of fewer tokens leaves some of them empty. The rate is met on
    average: a row of 100 tokens has 15 targets at a rate of 0.15, one of 10 has one or two.

    A row's loss is that of its targets. With next-sentence prediction that of its label is added, times the
    number of its targets: divided by the targets of the global batch, the loss is the mean over targets plus
    the mean over rows, as in BERT where rows are equally long.
    """

    def __init__(self, cfg: MaskedLMConfig, context: ObjectiveContext) -> None:
        self._cfg = cfg
        mask, *marks = context.ids(cfg.extra_ids(context.seq_len))
        self._mask = mask
        special = {*context.special.values(), context.eos, mask, *marks}
        is_text = torch.ones(context.vocab, dtype=torch.bool)
        is_text[[number for number in special if number < context.vocab]] = False
        starts = context.starts_word() if cfg.whole_words else None
        self._tables = cache(_Tables(is_text.nonzero()[:, 0], is_text, starts).to)
        self._sentences = Sentences(context.seed, cls=marks[0], sep=context.eos) if marks else None
        draws = ("masked_lm.count", "masked_lm.places", "masked_lm.how", "masked_lm.random")
        self._count, self._places, self._how, self._random = (Draw(context.seed, name) for name in draws)

    @property
    def measures(self) -> tuple[str, ...]:
        """Implements `common.objective.Measures`."""
        told = ("next_sentence_loss", "next_sentence_accuracy")
        return ("masked_accuracy", *(told if self._sentences else ()))

    def slots(self, seq_len: int) -> int:
        """Return the largest number of targets of a row."""
        return max(1, math.ceil(self._cfg.mask_rate * seq_len))

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed the masked tokens. kwargs: `places` and `targets` [rows, slots]; `documents` [rows, seq], by
        which padding is not attended to; `positions` where the batch has them; with next-sentence prediction
        `types` [rows, seq], `pooled` [rows, 1], the first place, and `labels` [rows].
        """
        drawn = numbers(sequences, tensors["tokens"].device)
        rows = self._rows(tensors, drawn)
        x, places, targets = self._masked(rows, drawn)
        kwargs = {"documents": rows.documents, "places": places, "targets": targets}
        if rows.types is not None and rows.labels is not None:
            pooled = torch.zeros_like(drawn)[:, None]
            kwargs |= {"types": rows.types, "pooled": pooled, "labels": rows.labels}
            return ModelInputs(x, kwargs, {"types": 1}, frozenset({"places", "pooled"}))
        if "positions" in tensors:
            kwargs["positions"] = tensors["positions"]
        return ModelInputs(x, kwargs, {"positions": 1}, frozenset({"places"}))

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return each row's nats and the number of its targets here."""
        # In evaluation further columns stand behind the loss: see `measure`.
        return output if output.ndim == 1 else output[:, 0], self._counted(inputs)

    def measure(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        """Implements `common.objective.Measures`. output: [rows, columns], as an encoder returns it in
        evaluation.
        """
        right, *told = output[:, 1:].unbind(dim=1)
        figures = [torch.stack((right.sum(), self._counted(inputs).sum()))]
        if self._sentences is not None:
            known = (inputs.kwargs["labels"] != IGNORED) & (inputs.kwargs["pooled"][:, 0] >= 0)
            figures += [torch.stack((one.sum(), known.sum().to(one.dtype))) for one in told]
        return torch.stack(figures)

    def _counted(self, inputs: ModelInputs) -> Tensor:
        here = (inputs.kwargs["targets"] != IGNORED) & (inputs.kwargs["places"] >= 0)
        return here.sum(dim=1).to(torch.float32)

    def _rows(self, tensors: Mapping[str, Tensor], drawn: Tensor) -> Rows:
        if self._sentences is not None:
            return self._sentences(tensors, drawn)
        tokens, following = tensors["tokens"], tensors["following"]
        padding = torch.arange(tokens.shape[1], device=tokens.device) >= lengths_of(following)[:, None]
        documents = tensors["documents"] if "documents" in tensors else padding.to(torch.int64)
        # A held-out window repeats tokens as context, which nothing follows: they are targets elsewhere.
        return Rows(tokens, following >= 0, documents)

    def _masked(self, rows: Rows, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens with masks [rows, seq], places and targets [rows, slots])."""
        tables, cfg = self._tables(rows.tokens.device), self._cfg
        seq = rows.tokens.shape[1]
        # An id beyond the tokenizer's is a mark of this objective, and no text.
        known = rows.tokens.clamp(max=len(tables.is_text) - 1)
        candidates = rows.candidates & tables.is_text[known] & (known == rows.tokens)
        wanted = candidates.sum(dim=1).to(torch.float64) * cfg.mask_rate
        counts = choice.rounded(wanted, self._count.uniform(drawn, 1)[:, 0].to(torch.float64))
        counts = counts.clamp(max=self.slots(seq))
        if tables.starts_word is None:
            chosen = choice.tokens(candidates, counts, self._places, drawn)
        else:
            starts = tables.starts_word[known]
            chosen = choice.words(candidates, starts, counts, self._places, drawn)
        how = self._how.uniform(drawn, seq)
        other = tables.text[self._random.integers(drawn, seq, len(tables.text))]
        shown = torch.where(how < cfg.mask_share + cfg.random_share, other, rows.tokens)
        shown = torch.where(how < cfg.mask_share, self._mask, shown)
        places = choice.places_of(chosen, self.slots(seq))
        targets = rows.tokens.gather(1, places.clamp(min=0)).masked_fill(places < 0, IGNORED)
        return torch.where(chosen, shown, rows.tokens), places, targets
