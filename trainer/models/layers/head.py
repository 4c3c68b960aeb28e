"""The language-model head: logits, or their cross-entropy without ever holding all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.module_interfaces import TokenLoss, VocabShard
from common.objective import IGNORED
from trainer.models.layers.cross_entropy import chunked_nll_sum
from trainer.models.layers.known_gradients import GradientSum


def at_places(hidden: Tensor, places: Tensor) -> Tensor:
    """Return the hidden states [batch, places, hidden] at `places` [batch, places] of hidden [batch, seq,
    hidden]; at a negative place the first one's.
    """
    index = places.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, index)


class LMHead(nn.Module):
    """weight [vocab, hidden], bias [vocab] or none; hidden states → logits, or with targets → negative
    log-likelihood by sequence.

    hidden: width of the hidden states.
    vocab: number of logits.
    bias: whether the logits have a bias.
    softcap: logits z become softcap · tanh(z / softcap); 0: they do not.

    With a part of the vocabulary's rows (`set_vocab_shard`), losses are those of `chunked_nll_sum` with a
    shard; without targets, the logits are those of this rank's rows.

    Implements `VocabParallel`, `HasTokenLoss`, `FusesKernels` and `BuffersGradient` of
    `common.module_interfaces`.
    """

    def __init__(self, hidden: int, vocab: int, *, bias: bool = False, softcap: float = 0.0) -> None:
        super().__init__()
        self.softcap = softcap
        self.weight = nn.Parameter(torch.empty(vocab, hidden))
        if not self.weight.is_meta:  # as in layers.Linear
            nn.init.normal_(self.weight, std=hidden**-0.5)
        self.bias = nn.Parameter(torch.zeros(vocab)) if bias else None
        self._vocab = vocab
        self._options = TokenLoss()
        self._shard: VocabShard | None = None
        self._compiler: str | None = None
        self._gradients: tuple[GradientSum | None, GradientSum | None] = (None, None)

    def set_vocab_shard(self, shard: VocabShard) -> None:
        """Take `weight` and `bias` for a part of the vocabulary's rows."""
        self._shard = shard

    def set_token_loss(self, options: TokenLoss) -> None:
        """Minimise this while training."""
        self._options = options

    def set_compiler(self, backend: str) -> None:
        """Fuse the passes over a chunk of logits with this torch.compile backend."""
        self._compiler = backend

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        hits: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """hidden [batch, seq, hidden] → [batch, seq, vocab]; with targets [batch, seq] → [batch], nats; while
        training, with what `set_token_loss` adds.

        hits: bool [batch, seq], filled with whether each counted target has the largest logit.
        places: where the targets are, [batch, places] as they are; a target at a negative place is not
            counted. None: at every place in turn.
        """
        if places is not None:
            hidden = at_places(hidden, places)
            targets = None if targets is None else targets.masked_fill(places < 0, IGNORED)
        hidden = self.prepared(hidden)
        if targets is None:
            logits = F.linear(hidden, self.weight, self.bias)
            return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits
        weight_gradients, bias_gradients = self._gradients
        return chunked_nll_sum(
            hidden.flatten(0, 1),
            self.weight,
            targets.flatten(),
            sequences=len(targets),
            shard=self._shard,
            compiler=self._compiler,
            gradients=weight_gradients,
            softcap=self.softcap,
            bias=self.bias,
            bias_gradients=bias_gradients,
            hits=None if hits is None else hits.view(-1),
            options=self._options if self.training else TokenLoss(),
            vocab=self._vocab,
        )

    def prepared(self, hidden: Tensor) -> Tensor:
        """Return what the logits are made of, of the hidden states at the places that are computed: these
        themselves. A head with a layer of its own before the logits overrides this.
        """
        return hidden

    @contextmanager
    def one_gradient_buffer(self, *, zeros: bool) -> Iterator[None]:
        """While the context lasts, all forwards share one `GradientSum` for the weight's gradient, and one
        more for the bias's.

        For schedules that run many forwards before the first backward. All their backwards run inside.
        """
        sums = GradientSum(zeros=zeros), GradientSum(zeros=zeros)
        self._gradients = sums
        try:
            yield
            assert all(one.waiting == 0 for one in sums), "a forward is left without its backward"
        finally:
            self._gradients = (None, None)
