"""Which tokens of a row are predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.objectives.draws import Draw

_PASSES = 4
"""Passes over a row's words; see `words`. What would still fit after them is a token or two in thousands of
rows."""


def rounded(wanted: Tensor, share: Tensor) -> Tensor:
    """Return `wanted` [rows] rounded down or up by the draw `share` [rows], uniform in [0, 1), so that the
    mean is `wanted`. int64.
    """
    return (wanted + share).floor().to(torch.int64)


def tokens(candidates: Tensor, counts: Tensor, order: Draw, sequences: Tensor) -> Tensor:
    """Return which `counts` [rows] of each row's candidates are predicted, every choice equally likely.

    candidates: bool [rows, seq]; a row has at least `counts` of them.
    sequences: the rows' sequence numbers, from which `order` draws an order of the places.
    """
    ranks = order.ranks(sequences, candidates.shape[1], among=candidates)
    return candidates & (ranks < counts[:, None])


def words(candidates: Tensor, starts: Tensor, counts: Tensor, order: Draw, sequences: Tensor) -> Tensor:
    """Return which tokens are predicted where words are predicted as a whole, bool [rows, seq]: at most
    `counts` [rows] of a row.

    Words are taken in a random order, each where it still fits, as BERT's authors do (google-research/bert,
    create_pretraining_data.py). A word longer than a row's count is never predicted.

    candidates: bool [rows, seq].
    starts: bool [rows, seq], whether a token begins a word. A candidate behind a token that is none always
        begins one.
    """
    seq = candidates.shape[1]
    behind = torch.nn.functional.pad(candidates[:, :-1], (1, 0))  # whether the token before is a candidate
    begins = candidates & (starts | ~behind)
    word = begins.cumsum(dim=1).sub_(1).clamp_(min=0)  # of each token; those of a row are counted from 0
    lengths = torch.zeros_like(word).scatter_add_(1, word, candidates.to(torch.int64))
    ranks = order.ranks(sequences, seq, among=lengths > 0)
    in_order = torch.zeros_like(lengths).scatter_(1, ranks, lengths)
    taken = torch.zeros_like(candidates)
    left = counts[:, None].clone()
    # One after another would be a loop over all words. As long as words fit they are taken together; the one
    # that no longer does is passed over for good, since what is left only becomes less: the same result.
    for _ in range(_PASSES):
        fits = ~taken & (in_order > 0) & (in_order <= left)
        together = (in_order * fits).cumsum(dim=1)
        more = fits & (together <= left)
        taken |= more
        left -= (in_order * more).sum(dim=1, keepdim=True)
    return candidates & taken.gather(1, ranks).gather(1, word)


def places_of(chosen: Tensor, slots: int) -> Tensor:
    """Return the places of each row's chosen tokens in ascending order, -1 behind them: int64 [rows, slots].

    chosen: bool [rows, seq], at most `slots` of a row.
    """
    seq = chosen.shape[1]
    places = torch.arange(seq, device=chosen.device).expand_as(chosen).masked_fill(~chosen, seq)
    places = places.sort(dim=1).values[:, :slots]
    return places.masked_fill(places == seq, -1)
