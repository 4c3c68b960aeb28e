"""What a model's module may offer to `parallel`, beside what every torch module has.

A module implements an interface by having its methods; `parallel` finds such modules with `isinstance`.
Imports torch for types only.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class VocabShard:
    """A rank's rows of an output matrix [vocab, hidden] that is split over ranks.

    group: the ranks that hold the rows.
    first_row: the global number of this rank's first row.
    """

    group: ProcessGroup
    first_row: int


@runtime_checkable
class VocabParallel(Protocol):
    """A module of the style "vocab_head" (see `ModelPlan`), whose `weight`, and `bias` where it has one,
    tensor parallelism splits.
    """

    def set_vocab_shard(self, shard: VocabShard) -> None:
        """Compute with the rows in `weight` as a part of the vocabulary. Called once `weight` is split."""


@runtime_checkable
class HasLowRank(Protocol):
    """A linear layer with a branch beside its matrix: the layer's result is weight · x + lora(x) + bias."""

    @property
    def lora(self) -> nn.Module: ...


@dataclass(frozen=True)
class TokenLoss:
    """What is minimised beside the negative log-likelihood of a target, of logits z with log Z = log Σ exp z.

    z_loss: λ of λ · (log Z)² (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, section 5).
    label_smoothing: ε: the target has the probability 1 - ε, and ε is spread evenly over the vocabulary, the
        target included (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0


@runtime_checkable
class HasTokenLoss(Protocol):
    """A module that computes losses of tokens."""

    def set_token_loss(self, options: TokenLoss) -> None:
        """Minimise this while training; in evaluation the loss is the negative log-likelihood."""


@runtime_checkable
class SharesSequence(Protocol):
    """A model whose forward needs to know that ranks share each sequence (context parallelism)."""

    def set_sequence_ranks(self, ranks: int) -> None:
        """Take the tokens that forward is given for one of `ranks` equal parts of each sequence. Attention
        is over all of them.
        """


@runtime_checkable
class FusesKernels(Protocol):
    """A module with passes of its own to compile, outside the blocks."""

    def set_compiler(self, backend: str) -> None:
        """Compile these passes with a torch.compile backend."""


@runtime_checkable
class BuffersGradient(Protocol):
    """A module that finds its weight's gradient in forward, and holds it in a buffer until backward."""

    def one_gradient_buffer(self, *, zeros: bool) -> AbstractContextManager[None]:
        """While the context lasts, add the gradients of all forwards up in one buffer.

        For schedules that run many forwards before the first backward; all their backwards run inside the
        context. The last backward returns the sum. The others return None, or a gradient of zeros with
        `zeros`.
        """
        ...
