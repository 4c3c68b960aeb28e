"""Span corruption: a text with gaps, then what was in the gaps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.objective import IGNORED, ModelInputs
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.draws import Draw, numbers
from trainer.objectives.spans.config import SpanCorruptionConfig


class SpanCorruption:
    """T5's objective (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4), in one row for a decoder.

        text       the  cat  sat  on  the  mat  .
        prefix     the  <0>  on  the  mat  <1>           tokens of the prefix see each other
        behind it  <0>  cat  sat  <1>  .  eos            predicted, each from all before it

    As T5 does, a row begins with what is kept and ends with a span, and the lengths of spans are a random
    partition. A text of n tokens has n · density tokens in spans, and a span is `mean_span` long; what a row
    cannot have in whole numbers is rounded up or down by a draw, so that both hold on average. A text's end
    is where `following` ends; what is behind it is padding.
    """

    def __init__(self, cfg: SpanCorruptionConfig, context: ObjectiveContext) -> None:
        self._cfg, self._eos = cfg, context.eos
        self._sentinels = torch.tensor(context.ids(cfg.extra_ids(context.seq_len)))
        names = ("noise", "spans", "cuts", "gaps")
        self._noise, self._spans, self._cuts, self._gaps = (
            Draw(context.seed, f"span_corruption.{name}") for name in names
        )

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed the prefix and what is behind it; `prefix` [rows] is the prefix's length, `places` are those
        of the targets.
        """
        tokens, following = tensors["tokens"], tensors["following"]
        rows, seq = tokens.shape
        drawn = numbers(sequences, tokens.device)
        places = torch.arange(seq, device=tokens.device)
        length = ((following >= 0) * (places + 1)).amax(dim=1)
        noise, spans = self._sizes(length, drawn)
        kept_lengths = self._partition(self._gaps, drawn, length - noise, spans, seq)
        noise_lengths = self._partition(self._cuts, drawn, noise, spans, seq)
        prefix = length - noise + spans

        # A text is kept, noise, kept, noise …: the number of each token's part, and the noise before it.
        parts = torch.stack((kept_lengths, noise_lengths), dim=2).flatten(1)
        part = torch.searchsorted(parts.cumsum(dim=1), places.expand(rows, seq).contiguous(), right=True)
        span, is_noise = part // 2, part % 2 == 1
        noise_before = is_noise.cumsum(dim=1) - is_noise.to(torch.int64)
        to = torch.where(is_noise, prefix[:, None] + noise_before + span + 1, places - noise_before + span)

        width = self._cfg.row_length(seq) + 1
        laid_out = torch.full((rows, width + 1), self._eos, dtype=torch.int64, device=tokens.device)
        # Everything without a place goes into a last column, which is cut off.
        to = torch.where(places < length[:, None], to, width)
        laid_out.scatter_(1, to, tokens)
        each = torch.arange(kept_lengths.shape[1], device=tokens.device)
        sentinels = self._sentinels_on(tokens.device)[: len(each)].expand(rows, -1)
        exists = each < spans[:, None]
        in_prefix = kept_lengths.cumsum(dim=1) + each
        behind = prefix[:, None] + noise_lengths.cumsum(dim=1) - noise_lengths + each
        for place in (in_prefix, behind):
            laid_out.scatter_(1, torch.where(exists, place, width), sentinels)

        inputs, targets = laid_out[:, : width - 1], laid_out[:, 1:width]
        columns = torch.arange(width - 1, device=tokens.device)
        end = prefix + noise + spans  # the last target is the separator
        predicted = (columns >= prefix[:, None] - 1) & (columns < end[:, None]) & (spans > 0)[:, None]
        # A held-out window repeats tokens as context, which nothing follows: they are targets elsewhere.
        is_new = torch.ones_like(laid_out, dtype=torch.bool).scatter_(1, to, following >= 0)
        predicted &= is_new[:, 1:width]
        slots = torch.arange(self._cfg.most_targets(seq), device=tokens.device) + prefix[:, None] - 1
        kwargs = {
            "targets": torch.where(predicted, targets, IGNORED),
            "places": torch.where((slots < end[:, None]) & (spans > 0)[:, None], slots, -1),
            "prefix": prefix,
        }
        return ModelInputs(inputs.contiguous(), kwargs, {"targets": 1}, frozenset({"places"}))

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return each row's summed nats over what is behind the prefix, and the number of targets."""
        return output, (inputs.kwargs["targets"] != IGNORED).sum(dim=1).to(torch.float32)

    def _sizes(self, length: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return (tokens in spans, spans) of texts of these lengths, each int64 [rows]; 0 and 0 where a text
        is too short to have a span.
        """
        up = self._noise.uniform(drawn, 1)[:, 0].double()
        noise = (length.double() * self._cfg.density + up).floor().to(torch.int64)
        noise = torch.minimum(noise.clamp(min=1), length - 1).clamp(min=0)
        up = self._spans.uniform(drawn, 1)[:, 0].double()
        spans = (noise.double() / self._cfg.mean_span + up).floor().to(torch.int64)
        return noise, torch.minimum(torch.minimum(spans.clamp(min=1), noise), length - noise).clamp(min=0)

    def _partition(self, draw: Draw, drawn: Tensor, total: Tensor, parts: Tensor, seq: int) -> Tensor:
        """Return lengths of `parts` parts that are not empty and add up to `total`, each partition equally
        likely, int64 [rows, the most spans]; 0 for parts that a row does not have.
        """
        places = torch.arange(seq, device=total.device)
        cuts = draw.ranks(drawn, seq, places < total[:, None] - 1) < parts[:, None] - 1
        # Place i is a cut: item i is the last of its part.
        number = cuts.cumsum(dim=1) - cuts.to(torch.int64)
        most = self._cfg.most_spans(seq)
        lengths = torch.zeros(len(total), most, dtype=torch.int64, device=total.device)
        inside = (places < total[:, None]).to(torch.int64)
        return lengths.scatter_add_(1, number.clamp(max=most - 1), inside)

    def _sentinels_on(self, device: torch.device) -> Tensor:
        if self._sentinels.device != device:
            self._sentinels = self._sentinels.to(device)
        return self._sentinels
