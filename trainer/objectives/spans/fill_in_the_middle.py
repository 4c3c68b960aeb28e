"""Fill-in-the-middle: next-token prediction on documents of which some have their middle behind their end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.objective import IGNORED, ModelInputs
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.draws import Draw, numbers
from trainer.objectives.spans.config import FillInTheMiddleConfig
from trainer.objectives.spans.pieces import MARKS, Moves, Pieces


class FillInTheMiddle:
    """Bavarian et al. 2022 (arXiv:2207.14255), "context-level": the documents of a packed row, or the parts
    of them that lie in it, are cut at two places that are drawn evenly, and laid out as

        prefix, suffix, middle    <prefix> P <suffix> S <middle> M
        suffix, prefix, middle    <prefix> <suffix> S <middle> P M

    The second is that of their appendix D: the marks say what is missing, so one model learns both. Every
    token is a target, the marks too. A row keeps its length: what the marks push behind its end is left out,
    three tokens for each document that is moved.
    """

    def __init__(self, cfg: FillInTheMiddleConfig, context: ObjectiveContext) -> None:
        self._cfg, self._eos = cfg, context.eos
        self._marks = context.ids(cfg.extra_ids(context.seq_len))
        self._moved, self._order, self._one, self._other = (
            Draw(context.seed, f"fill_in_the_middle.{name}") for name in ("moved", "order", "one", "other")
        )

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed the row laid out anew, with the token behind each as its target."""
        tokens, following = tensors["tokens"], tensors["following"]
        # The target of the last input is a token of the row too: it may move.
        last = following[:, -1:]
        ids = torch.cat((tokens, torch.where(last < 0, self._eos, last)), dim=1)
        is_target = torch.cat((following[:, :1], following), dim=1) >= 0
        pieces = Pieces.of(ids, following, self._eos)
        moves = self._moves(pieces, numbers(sequences, tokens.device))
        anew = _laid_out(ids, self._marks, moves)
        counted = _laid_out(is_target, (is_target,) * MARKS, moves)
        targets = torch.where(counted[:, 1:], anew[:, 1:], IGNORED)
        kwargs = {"targets": _with_ends(targets, following, moves)}
        sequence_dims = {"targets": 1}
        if (documents := tensors.get("documents")) is not None:
            documents = torch.cat((documents, documents[:, -1:]), dim=1)
            documents = _laid_out(documents, (documents,) * MARKS, moves)[:, :-1].contiguous()
            kwargs |= {"documents": documents, "positions": _positions(documents)}
            sequence_dims["positions"] = 1
        return ModelInputs(anew[:, :-1].contiguous(), kwargs, sequence_dims)

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return each row's summed nats over the targets that count, and their number."""
        return output, (inputs.kwargs["targets"] != IGNORED).sum(dim=1).to(torch.float32)

    def _moves(self, pieces: Pieces, drawn: Tensor) -> Moves:
        """Draw for each piece, at its first column, whether and how it is moved."""
        count = pieces.begin.shape[1]
        moved = pieces.at_begin(self._moved.uniform(drawn, count)) < self._cfg.rate
        suffix_first = pieces.at_begin(self._order.uniform(drawn, count)) < self._cfg.suffix_first
        one, other = (
            pieces.at_begin(draw.integers(drawn, count, pieces.length + 1))
            for draw in (self._one, self._other)
        )
        return Moves(
            pieces,
            moved=moved & pieces.is_text,
            suffix_first=suffix_first,
            one=torch.minimum(one, other),
            other=torch.maximum(one, other),
        )


def _laid_out(values: Tensor, marks: tuple[Tensor | int, ...], moves: Moves) -> Tensor:
    """Return `values` [rows, columns] laid out anew, cut to as many columns.

    marks: the values of the three marks; of a tensor [rows, columns] that at the piece's first column.
    """
    columns = values.shape[1]
    # What goes behind the end is written into one more column, which is cut off.
    found = values.new_zeros(len(values), columns + 1)
    found.scatter_(1, moves.places().clamp(max=columns), values)
    for place, mark in zip(moves.marks(columns), marks, strict=True):
        of_mark = mark if isinstance(mark, Tensor) else torch.full_like(values, mark)
        found.scatter_(1, place.clamp(max=columns), of_mark)
    return found[:, :columns]


def _with_ends(targets: Tensor, following: Tensor, moves: Moves) -> Tensor:
    """Return the targets [rows, seq] with what follows a piece behind its last token: its separator, though
    the next column may be inside another document.
    """
    rows, seq = targets.shape
    ends = (moves.pieces.is_last & moves.pieces.is_text)[:, :seq]
    place = torch.where(ends, moves.ends()[:, :seq], seq).clamp(max=seq)
    wide = torch.cat((targets, targets.new_zeros(rows, 1)), dim=1)
    return wide.scatter_(1, place, torch.where(following < 0, IGNORED, following))[:, :seq].contiguous()


def _positions(documents: Tensor) -> Tensor:
    """Return each place inside its document, from 0 on, of documents that are numbered along a row."""
    columns = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.zeros_like(columns)
    starts[:, 1:] = columns[:, 1:] * (documents[:, 1:] != documents[:, :-1])
    return columns - starts.cummax(dim=1).values
