"""What all contenders train: one small model, from the same first weights, on the same sequences.

Fused AdamW; the gradient is clipped by its norm; a step is MICRO_BATCHES micro-batches of ROWS sequences a
rank.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from parallel.parameters.initialize import draw
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder

MODEL = DecoderConfig(layers=6, hidden=256, heads=4, kv_heads=4, ffn_hidden=768, vocab=4096)
SEQ, ROWS, MICRO_BATCHES = 256, 1, 2  # rows of a micro-batch, micro-batches of a rank's step
POOL = 64  # different sequences
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    rank: int
    ranks: int

    def rows(self, step: int) -> list[range]:
        """Global numbers of the sequences in this rank's micro-batches of a step."""
        micros = [(step * MICRO_BATCHES + m) * self.ranks + self.rank for m in range(MICRO_BATCHES)]
        return [range(micro * ROWS, (micro + 1) * ROWS) for micro in micros]


class Contender(Protocol):
    """A training loop: `step` trains on the step's global batch and returns the loop's own loss."""

    def step(self, number: int) -> float: ...


def sequences() -> Tensor:
    return torch.randint(MODEL.vocab, (POOL, SEQ + 1), generator=torch.Generator().manual_seed(0))


class Data:
    """The sequences that a rank reads, in memory."""

    def __init__(self, place: Place) -> None:
        self._place, self._pool = place, sequences()

    def step(self, number: int) -> list[tuple[Tensor, Tensor]]:
        """(tokens, targets) of each micro-batch, [ROWS, SEQ]."""
        rows = [self._pool[[n % POOL for n in numbers]] for numbers in self._place.rows(number)]
        return [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]


@torch.no_grad()
def make_model() -> Decoder:
    model = Decoder(MODEL)
    for name, parameter in model.named_parameters():
        parameter.copy_(draw(name, tuple(parameter.shape), MODEL.plan(), 0, CPU))
    return model


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
