"""Rows of two sentences, of which the second follows the first in its document or is from another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.objective import IGNORED
from trainer.objectives.draws import Draw


@dataclass(frozen=True)
class Rows:
    """Rows before they are masked; each tensor is [rows, seq], but `labels`. Without sentences there are no
    types and labels.

    tokens: int64.
    candidates: bool, the tokens of text that may be predicted.
    documents: int64, by which padding is not attended to.
    types: int64, 0 in the first sentence, 1 in the second.
    labels: int64 [rows]: 0 where the second sentence follows the first, 1 where it is from elsewhere, IGNORED
        where there is too little text for two sentences.
    """

    tokens: Tensor
    candidates: Tensor
    documents: Tensor
    types: Tensor | None = None
    labels: Tensor | None = None


def lengths_of(following: Tensor) -> Tensor:
    """Return each row's inputs before its padding, int64 [rows]: up to the last one that a token follows."""
    places = torch.arange(1, following.shape[1] + 1, device=following.device)
    return (places * (following >= 0)).amax(dim=1)


class Sentences:
    """Makes a row [CLS] A [SEP] B [SEP] of a document and its partner.

    The document is cut in two at a place that is drawn. B is its second part or, in half of the rows, as many
    tokens of the partner, from the same distance to its beginning where it is long enough: so that neither
    B's length nor its place in a document tells which it is. The tokens at the end that the three marks take
    the place of are left out.

    seed: of the draws.
    cls, sep: the ids of [CLS] and [SEP]; `sep` also separates documents, and rows are padded with it.
    """

    def __init__(self, seed: int, *, cls: int, sep: int) -> None:
        self._cut, self._other = Draw(seed, "masked_lm.cut"), Draw(seed, "masked_lm.other")
        self._cls, self._sep = cls, sep

    def __call__(self, tensors: Mapping[str, Tensor], sequences: Tensor) -> Rows:
        """tensors: a batch's `tokens`, `following`, `partner` and `partner_following`, [rows, seq] each."""
        tokens, following = tensors["tokens"], tensors["following"]
        partner, partner_following = tensors["partner"], tensors["partner_following"]
        seq = tokens.shape[1]
        first, ids = self._text(tokens, following)
        other_first, other_ids = self._text(partner, partner_following)
        ids = ids.clamp(max=seq - 3)
        cut = 1 + self._cut.integers(sequences, 1, (ids - 1).clamp(min=0))
        other = self._other.integers(sequences, 1, 2).bool()
        second = ids - cut  # tokens of B; below 1 where there is too little text for two sentences
        second = torch.where(other, torch.minimum(second, other_ids), second)
        other_from = other_first + torch.minimum(cut, other_ids - second).clamp(min=0)

        places = torch.arange(seq, device=tokens.device)[None]
        in_first = (places > 0) & (places <= cut)
        in_second = (places > cut + 1) & (places <= cut + 1 + second)
        marks = (places == cut + 1) | (places == cut + 2 + second)
        of_document = first + places - 1 - (places > cut).to(torch.int64)
        of_partner = other_from + places - cut - 2
        from_partner = in_second & other
        index = torch.where(from_partner, of_partner, of_document).clamp(0, seq - 1)
        text = torch.where(from_partner, partner.gather(1, index), tokens.gather(1, index))
        scored = torch.where(from_partner, partner_following.gather(1, index), following.gather(1, index))
        whole = second > 0
        inside = whole & (in_first | in_second)
        real = whole & ((places == 0) | in_first | in_second | marks)
        found = torch.where(inside, text, self._sep)
        found[:, 0] = self._cls
        return Rows(
            tokens=found,
            candidates=inside & (scored >= 0),
            documents=(~real).to(torch.int64),
            types=(real & (places > cut + 1)).to(torch.int64),
            labels=torch.where(whole, other.to(torch.int64), IGNORED)[:, 0],
        )

    def _text(self, tokens: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """(the place of each row's first token of text; the number of these tokens), [rows, 1] each. Marks
        before and behind them, which a tokenizer's template has put there, are left out.
        """
        end = lengths_of(following)[:, None]
        first = (tokens[:, :1] == self._sep).to(torch.int64)
        first = first + (tokens.gather(1, first) == self._cls).to(torch.int64)
        end = end - (tokens.gather(1, (end - 1).clamp(min=0)) == self._sep).to(torch.int64)
        return first, (end - first).clamp(min=0)
