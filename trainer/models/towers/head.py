"""From the hidden states of texts to their embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.layers.linear import Linear
from trainer.models.pairs import LEARNT_COLUMNS


class TextHead(nn.Module):
    """Pooling by weights, then one linear layer or two, and the learnt numbers of the scores beside them.

    hidden [rows, seq, hidden] → float [rows, texts · embedding + learnt], for texts in equal parts of a row.

    hidden: width of the hidden states.
    embedding: width of an embedding; 0: the pooled hidden state itself.
    bias: whether the linear layer has one.
    learnt: see `LEARNT_COLUMNS`. They are the logarithm of a scale, and a bias.
    transform: a layer on the pooled hidden state, before the linear one.

    Without a `transform`, an embedding is a sum over its text's tokens, bias included, which is multiplied by
    the sum of the weights. So where ranks share a sequence, the sum of their results is the embedding.
    """

    def __init__(
        self, hidden: int, embedding: int, *, bias: bool, learnt: str, transform: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.transform = transform
        self.project = Linear(hidden, embedding, bias=bias) if embedding else None
        columns = LEARNT_COLUMNS[learnt]
        self.log_scale = nn.Parameter(torch.zeros(1)) if columns > 0 else None
        self.score_bias = nn.Parameter(torch.zeros(1)) if columns > 1 else None
        self.sequence_ranks = 1

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """weights: [rows, texts, seq], of each token in its text's embedding."""
        weights = weights.to(x.dtype)
        z = weights @ x
        if self.transform is not None:
            z = self.transform(z)
        if self.project is not None:
            z = F.linear(z, self.project.weight)
            if self.project.bias is not None:
                z = z + weights.sum(dim=-1, keepdim=True) * self.project.bias
        exact = torch.promote_types(z.dtype, torch.float32)
        columns = [z.flatten(1).to(exact)]
        for number in (self.log_scale, self.score_bias):
            if number is not None:
                columns.append((number.to(exact) / self.sequence_ranks).expand(len(z), 1))
        return torch.cat(columns, dim=1)
