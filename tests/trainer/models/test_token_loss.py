"""z-loss and label smoothing, in every path of the chunked head, against a dozen float64 lines."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from common.module_interfaces import TokenLoss, VocabShard
from common.objective import IGNORED
from ranks import RankContext, RankPools
from trainer.models import build
from trainer.models.build import build_model
from trainer.models.decoder.config import DecoderConfig
from trainer.models.layers.cross_entropy import chunked_nll_sum
from trainer.models.layers.head import LMHead

OPTIONS = [TokenLoss(1e-2, 0.0), TokenLoss(0.0, 0.1), TokenLoss(1e-2, 0.1)]
ROWS, VOCAB, HIDDEN = 37, 100, 24


def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias, targets."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=draw, dtype=torch.float64)
    weight = torch.randn(VOCAB, HIDDEN, generator=draw, dtype=torch.float64)
    bias = torch.randn(VOCAB, generator=draw, dtype=torch.float64)
    targets = torch.randint(VOCAB, (ROWS,), generator=draw)
    targets[torch.rand(ROWS, generator=draw) < 0.3] = IGNORED
    return hidden, weight, bias, targets


def plain(options: TokenLoss, softcap: float) -> tuple[Tensor, ...]:
    """The loss, and its gradients by hidden states, weight and bias, in float64."""
    hidden, weight, bias, targets = case()
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    z = hidden @ weight.T + bias
    z = softcap * torch.tanh(z / softcap) if softcap else z
    log_p = z - z.exp().sum(1, keepdim=True).log()
    counted = targets != IGNORED
    wanted = F.one_hot(targets.clamp(min=0), VOCAB).double() * (1 - options.label_smoothing)
    wanted = wanted + options.label_smoothing / VOCAB
    loss = -(wanted * log_p).sum(1) + options.z_loss * z.exp().sum(1).log() ** 2
    total = loss[counted].sum()
    return total.detach(), *torch.autograd.grad(0.37 * total, leaves)


def test_the_reference_is_torchs_own_where_torch_has_one() -> None:
    hidden, weight, bias, targets = case()
    expected = F.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(plain(TokenLoss(0.0, 0.1), 0.0)[0], expected)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("compiler", [None, "eager", "aot_eager"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradients(options: TokenLoss, compiler: str | None, softcap: float) -> None:
    hidden, weight, bias, targets = case()
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    loss = chunked_nll_sum(
        hidden, weight, targets, bias=bias, chunk=16, options=options, compiler=compiler, softcap=softcap
    )
    found = (loss.detach()[0], *torch.autograd.grad((0.37 * loss).sum(), leaves))
    for mine, theirs in zip(found, plain(options, softcap), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def split(context: RankContext, options: TokenLoss, compiler: str | None, vocab: int) -> list[Tensor]:
    hidden, weight, bias, targets = case()
    cut = 30  # uneven shards
    part = slice(0, cut) if context.rank == 0 else slice(cut, VOCAB)
    group = dist.group.WORLD
    assert group is not None
    leaves = [
        hidden.requires_grad_(),
        weight[part].clone().requires_grad_(),
        bias[part].clone().requires_grad_(),
    ]
    loss = chunked_nll_sum(
        *leaves[:2],
        targets,
        bias=leaves[2],
        chunk=16,
        shard=VocabShard(group, part.start),
        options=options,
        compiler=compiler,
        vocab=vocab,
    )
    return [loss.detach()[0], *torch.autograd.grad((0.37 * loss).sum(), leaves)]


@pytest.mark.parametrize("compiler", [None, "eager"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shards_of_the_vocabulary(ranks: RankPools, options: TokenLoss, compiler: str | None) -> None:
    first, second = ranks(2).run(split, options, compiler, VOCAB)
    loss, hidden, weight, bias = plain(options, 0.0)
    assert torch.equal(first[0], second[0])
    whole = (
        first[0],
        first[1] + second[1],
        torch.cat((first[2], second[2])),
        torch.cat((first[3], second[3])),
    )
    for mine, theirs in zip(whole, (loss, hidden, weight, bias), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_a_shard_that_spreads_over_itself_alone_would_be_seen(ranks: RankPools) -> None:
    wrong = ranks(2).run(split, TokenLoss(0.0, 0.1), None, 0)[0][0]
    assert (wrong - plain(TokenLoss(0.0, 0.1), 0.0)[0]).abs() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiler", [None, "aot_eager"])
def test_coarse_types_stay_near(dtype: torch.dtype, compiler: str | None) -> None:
    hidden, weight, bias, targets = case()
    leaves = [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)]
    loss = chunked_nll_sum(*leaves[:2], targets, bias=leaves[2], options=OPTIONS[2], compiler=compiler)
    found = (loss.detach()[0], *torch.autograd.grad((0.37 * loss).sum(), leaves))
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    for mine, theirs in zip(found, plain(OPTIONS[2], 0.0), strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance * scale)


def test_evaluation_has_the_bare_likelihood() -> None:
    cfg = DecoderConfig(layers=1, hidden=16, heads=2, vocab=31)
    torch.manual_seed(0)
    model = build_model(cfg, OPTIONS[2])
    tokens = torch.arange(12).view(1, 12)
    smoothed = model(tokens, targets=tokens)
    bare = model.eval()(tokens, targets=tokens)
    assert abs(float(smoothed - bare)) > 1e-3
    (head,) = [module for module in model.modules() if isinstance(module, LMHead)]
    head.set_token_loss(TokenLoss())
    assert torch.equal(model.train()(tokens, targets=tokens), bare)


def test_a_model_that_would_leave_the_options_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "wrong_plan", lambda *_: "")
    cfg = DecoderConfig(layers=1, hidden=16, heads=2, vocab=31)
    cfg.model_class = "torch.nn:Identity"  # type: ignore[misc]
    build_model(cfg, TokenLoss())
    with pytest.raises(
        ValueError, match=r"z_loss=0.01, label_smoothing=0: no module of model.kind='decoder'"
    ):
        build_model(cfg, TokenLoss(1e-2))
