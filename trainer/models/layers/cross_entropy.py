"""Cross-entropy of hidden states and an output matrix, a chunk of logits at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from common.module_interfaces import TokenLoss, VocabShard
from common.objective import IGNORED
from trainer.models.layers.known_gradients import GradientSum, HiddenGradient, WeightGradient, add_product
from trainer.models.layers.softmax import FusedSoftmax, Smoothing, Softmax


def chunked_nll_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    sequences: int = 1,
    chunk: int = 0,
    shard: VocabShard | None = None,
    compiler: str | None = None,
    gradients: GradientSum | None = None,
    softcap: float = 0.0,
    bias: Tensor | None = None,
    bias_gradients: GradientSum | None = None,
    hits: Tensor | None = None,
    options: TokenLoss | None = None,
    vocab: int = 0,
) -> Tensor:
    """Σ over counted rows of -log softmax(hidden weightᵀ + bias)[target], in nats: [sequences], float32.

    hidden: [rows, hidden], the rows of so many sequences of one length, one after another.
    weight: [vocab, hidden].
    targets: [rows] int64, IGNORED for rows that are not counted.
    sequences: number of sequences, each of which gets a sum.
    chunk: rows of logits that exist at a time; 0: chosen by size.
    shard: which rows of the vocabulary `weight` holds; None: all.
    compiler: torch.compile backend for two fused kernels, which read a chunk's logits in the dtype of the
        matrix product, so that no float32 copy of them exists; None: eager operators on such a copy.
    gradients: sums the weight's gradient over several calls; None: this call's alone.
    softcap: logits z become softcap · tanh(z / softcap) before the softmax; 0: they do not.
    bias: [vocab], split as `weight` is; None: none.
    bias_gradients: as `gradients`, of the bias.
    hits: bool [rows], filled with whether the target is counted and has the largest logit; None: not told.
    options: what is added to a row's loss; None: nothing.
    vocab: rows of the whole output matrix, of which `weight` may be a shard; 0: those of `weight`.

    The softmax is computed in float32 (float64 for float64 arguments), the weight's gradient is added up in
    float32. Gradients are those of the total over the sequences: backward has to bring one factor for all of
    them, else they are NaN. So forward knows them up to that factor, and computes them chunk by chunk: three
    matrix products in all, as without chunks. Backward may run once. Without grad, none of this is computed.

    With `shard`, every rank of its group passes the same `hidden` and `targets`. Every rank then returns the
    same, whole sum; the gradient of `weight` is this rank's rows of the whole gradient; the gradient of
    `hidden` is a *partial* one, whose sum over the group is the whole gradient. That holds where every rank
    runs backward with the same factor. One small all-gather a chunk, and no message in backward.
    """
    smoothing = Smoothing.of(options or TokenLoss(), vocab or weight.shape[0])
    chunk = chunk or _rows_at_a_time(weight, hidden.shape[0], fused=compiler is not None)
    grad = torch.is_grad_enabled()
    weight_grad = bias_grad = None
    if grad and weight.requires_grad:
        gradients = gradients or GradientSum()
        weight_grad = gradients.buffer(weight)
    if grad and bias is not None and bias.requires_grad:
        bias_gradients = bias_gradients or GradientSum()
        bias_grad = bias_gradients.buffer(bias)
    with torch.no_grad():
        wants_hidden = grad and hidden.requires_grad
        losses, hidden_grad = _losses_and_gradients(
            hidden,
            weight,
            bias,
            bias_grad,
            hits,
            targets,
            chunk,
            shard,
            compiler,
            smoothing,
            wants_hidden,
            weight_grad,
            softcap,
        )
        total = losses.view(sequences, -1).sum(dim=1)
    # A node for each, not one with several inputs: backward may be run for each alone.
    if hidden_grad is not None:
        total = HiddenGradient.apply(hidden, total, hidden_grad)
    if weight_grad is not None:
        total = total + WeightGradient.apply(weight, torch.zeros_like(total), gradients)
    if bias_grad is not None:
        total = total + WeightGradient.apply(bias, torch.zeros_like(total), bias_gradients)
    return total


def _losses_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bias_grad: Tensor | None,
    hits: Tensor | None,
    targets: Tensor,
    chunk: int,
    shard: VocabShard | None,
    compiler: str | None,
    smoothing: Smoothing | None,
    wants_hidden: bool,
    weight_grad: Tensor | None,
    softcap: float,
) -> tuple[Tensor, Tensor | None]:
    """Return the losses [rows] and, with `wants_hidden`, the gradient of `hidden`.

    weight_grad, bias_grad: what the gradients of `weight` and `bias` are added to; None: not computed.
    hits: see `chunked_nll_sum`.
    """
    vocab, rows = weight.shape[0], hidden.shape[0]
    exact = torch.promote_types(hidden.dtype, torch.float32)
    losses = torch.empty(rows, dtype=exact, device=hidden.device)
    hidden_grad = torch.empty_like(hidden) if wants_hidden else None
    # Fresh pages for every chunk would cost more than the products: all chunks work in the same two.
    products = hidden.new_empty(min(chunk, rows), vocab)
    same = exact == products.dtype or compiler is not None
    logits = products if same else products.new_empty(products.shape, dtype=exact)
    local_targets = targets if shard is None else targets - shard.first_row
    counted = targets != IGNORED
    here = counted & (local_targets >= 0) & (local_targets < vocab)
    columns = local_targets.clamp(0, vocab - 1)[:, None]
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        product = products[: len(hidden[part])]
        if bias is None:
            torch.mm(hidden[part], weight.T, out=product)
        else:
            torch.addmm(bias, hidden[part], weight.T, out=product)
        slope = _cap(product, softcap) if softcap else None
        exact_product = product if logits is products else logits[: len(product)].copy_(product)
        softmax: Softmax | FusedSoftmax
        if compiler is None:
            softmax = Softmax.of(exact_product, columns[part], here[part], shard, smoothing)
        else:
            softmax = FusedSoftmax.of(product, columns[part], here[part], shard, compiler, smoothing)
        losses[part] = softmax.loss() * counted[part]
        if hits is not None:
            hits[part] = (softmax.numbers.at_target >= softmax.numbers.peak) & counted[part]
        if hidden_grad is None and weight_grad is None and bias_grad is None:
            continue
        gradient = softmax.loss_gradient(columns[part], here[part], counted[part])
        if slope is not None:
            gradient = gradient.mul_(slope)
        if gradient.dtype != weight.dtype:
            gradient = product.copy_(gradient)
        if hidden_grad is not None:
            torch.mm(gradient, weight, out=hidden_grad[part])
        if weight_grad is not None:
            add_product(weight_grad, gradient, hidden[part])
        if bias_grad is not None:
            bias_grad += gradient.sum(dim=0, dtype=bias_grad.dtype)
    return losses, hidden_grad


def _cap(logits: Tensor, softcap: float) -> Tensor:
    """Put softcap · tanh(z / softcap) in the place of the logits z; return its derivative by z, of their
    shape.
    """
    shares = torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / softcap)
    logits.copy_(shares * softcap)
    return shares.square_().neg_().add_(1)


def _rows_at_a_time(weight: Tensor, rows: int, *, fused: bool) -> int:
    """Return how many rows' logits stay in a CPU's cache, or keep a GPU busy.

    Chunks are of one size, as far as can be: fused kernels are compiled for each size. Half-precision
    products are added up outside the matrix product, which pays with more rows at a time. On a CPU the
    weight's gradient leaves the cache once a chunk, which does not pay with few rows: a chunk of logits may
    be a quarter of the gradient's size, and peak memory stays far below that of the full logits.
    """
    element_bytes = weight.element_size() if fused else 4
    vocab, hidden = weight.shape
    if weight.is_cuda:
        most = (512 << 20) // (element_bytes * vocab)
    else:
        budget_bytes = 16 << 20 if weight.element_size() >= 4 else 32 << 20
        most = max(budget_bytes // (element_bytes * vocab), hidden // 4)
    most = max(64, most // 64 * 64)
    chunks = max(1, -(-rows // most))
    return -(-rows // (64 * chunks)) * 64
