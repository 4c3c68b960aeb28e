"""The decoder: cut into stages, document by document, cached. test_families.py compares it with others'."""

import copy
import fnmatch
import math

import pytest
import torch
from torch import Tensor

from trainer.models.build import build_model
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder
from trainer.models.layers import attention
from trainer.models.layers.attention import KVCache, attend, rotate
from trainer.models.layers.masks import attention_block_mask, attention_mask
from trainer.models.layers.norm import RMSNorm, _RMSNorm
from trainer.models.layers.shared import RotaryTables

SMALL = DecoderConfig(layers=2, hidden=32, heads=4, vocab=50)
RICH = DecoderConfig(layers=3, hidden=48, heads=6, kv_heads=2, vocab=50, qk_norm=True, tie_embeddings=True)


def drawn(cfg: DecoderConfig, dtype: torch.dtype = torch.float64) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(cfg).to(dtype)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start at one, where a missing one would not be seen
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def tokens(batch: int = 2, seq: int = 16, vocab: int = 50) -> Tensor:
    return torch.randint(vocab, (batch, seq), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cfg", [SMALL, RICH])
def test_two_halves_chained_are_the_whole(cfg: DecoderConfig) -> None:
    whole = drawn(cfg)
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    first.norm = first.head = None
    second.embed = None
    for key in list(whole.layers):
        del (first if int(key) >= 1 else second).layers[key]
    inputs = {"targets": tokens().roll(-1, 1), "documents": torch.arange(16).expand(2, -1) // 5}
    expected = whole(tokens(), **inputs)
    got = second(first(tokens(), **inputs), **inputs)
    assert torch.allclose(got, expected, rtol=1e-12)
    expected.sum().backward(), got.sum().backward()
    parts = dict(first.named_parameters()) | dict(second.named_parameters())
    for name, parameter in whole.named_parameters():
        gradient = parts[name].grad
        if (name, "head.weight") in cfg.plan().tied:
            gradient = parts[name].grad + parts["head.weight"].grad
        assert torch.allclose(gradient, parameter.grad, rtol=1e-9, atol=1e-12), name


def test_names_survive_a_cut() -> None:
    whole = Decoder(SMALL)
    names = set(whole.state_dict())
    assert {"embed.weight", "layers.0.attention.wq.weight", "layers.1.mlp.w2.weight", "head.weight"} <= names
    whole.embed = None
    del whole.layers["0"]
    assert set(whole.state_dict()) == {n for n in names if not n.startswith(("embed.", "layers.0."))}


def test_documents_are_as_if_alone() -> None:
    model, lengths = drawn(RICH), [5, 1, 10]
    whole = tokens(1)
    inputs = {
        "documents": torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None],
        "positions": torch.cat([torch.arange(n) for n in lengths])[None],
    }
    alone = torch.cat([model(part) for part in whole.split(lengths, dim=1)], dim=1)
    assert torch.allclose(model(whole, **inputs), alone, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(model(whole), alone, rtol=1e-3)


def test_positions_count_from_zero_when_not_given() -> None:
    model = drawn(SMALL)
    positions = torch.arange(16).expand(2, -1)
    assert torch.equal(model(tokens(), positions=positions), model(tokens()))
    # Rotation is relative: the same shift everywhere changes nothing.
    assert torch.allclose(model(tokens(), positions=positions + 7), model(tokens()), rtol=1e-4, atol=1e-5)


def additive_mask(seq: int, documents: Tensor | None, window: int = 0) -> Tensor:
    mask = attention_mask(
        seq, documents=documents, window=window, dtype=torch.float32, device=torch.device("cpu")
    )
    assert isinstance(mask, Tensor)
    return mask


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_the_block_mask_of_a_window_is_the_additive_mask(softcap: float) -> None:
    q, k, v = (torch.randn(2, heads, 200, 16) for heads in (4, 2, 2))
    for documents in (None, torch.tensor([[0] * 50 + [1] * 100 + [2] * 50, [0] * 200])):
        dense = attend(q, k, v, additive_mask(200, documents, 30), softcap=softcap)
        block = attention_block_mask(200, documents, 30, q.device)
        assert torch.allclose(attend(q, k, v, block, softcap=softcap), dense, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_the_block_mask_is_the_additive_mask() -> None:
    documents = torch.tensor([[0] * 50 + [1] * 100 + [2] * 50, [0] * 200])
    q, k, v = (torch.randn(2, heads, 200, 16) for heads in (4, 2, 2))
    dense = attend(q, k, v, additive_mask(200, documents))
    block = attention_block_mask(200, documents, 0, q.device)
    assert torch.allclose(attend(q, k, v, block), dense, rtol=1e-4, atol=1e-5)
    alone = attend(q[:1, :, :50], k[:1, :, :50], v[:1, :, :50], None)
    assert torch.allclose(dense[:1, :, :50], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cfg", [SMALL, RICH])
@pytest.mark.parametrize("cuts", [[16], [1] * 16, [5, 1, 1, 6, 3]])
def test_cached_logits_are_the_uncached(cfg: DecoderConfig, cuts: list[int]) -> None:
    model, cache = drawn(cfg), KVCache(limit=20)
    with torch.inference_mode():
        parts = [model(part, cache=cache) for part in tokens().split(cuts, dim=1)]
        assert cache.length == 16
        assert torch.allclose(torch.cat(parts, dim=1), model(tokens()), rtol=1e-9, atol=1e-12)


def test_generating_first_leaves_a_model_that_trains() -> None:
    model = drawn(SMALL)
    with torch.inference_mode():
        model(tokens())
    model(tokens(), targets=tokens()).sum().backward()


def test_the_rotation_is_by_position_times_frequency() -> None:
    x = torch.randn(1, 9, 2, 8, dtype=torch.float32)
    turned = rotate(x, *RotaryTables(8, 100.0).upto(9, x.device))
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = torch.arange(9)[:, None, None] * 100.0 ** -(torch.arange(4) / 4)
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    assert torch.allclose(turned, torch.cat((expected.real, expected.imag), dim=-1), atol=1e-6)
    assert rotate(x.bfloat16(), *RotaryTables(8, 100.0).upto(9, x.device)).dtype == torch.bfloat16


def test_the_norm_is_torchs_with_its_gradients() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(24, 1e-3).double()
    torch.nn.init.uniform_(norm.weight)
    x = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(norm(x), torch.nn.functional.rms_norm(x, (24,), norm.weight, 1e-3), rtol=1e-12)
    torch.autograd.gradcheck(lambda x, weight: _RMSNorm.apply(x, weight, 1e-3), (x, norm.weight))


def test_the_norm_is_computed_in_float32() -> None:
    norm = RMSNorm(512, 1e-5).bfloat16()
    x = (torch.randn(4, 512) * 300).bfloat16()
    exact = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-5)
    # One rounding to bfloat16 at the end is at most 2⁻⁹ of the value.
    assert ((norm(x).double() - exact).abs() <= exact.abs() * 2**-8).all()


def test_bfloat16_weights_give_the_loss_of_float32() -> None:
    model = drawn(DecoderConfig(layers=4, hidden=64, heads=4, vocab=200), torch.float32)
    x = tokens(4, 64, 200)
    coarse = copy.deepcopy(model).bfloat16()(x, targets=x)
    assert coarse.dtype == torch.float32
    assert torch.allclose(coarse, model(x, targets=x), rtol=5e-3)


@pytest.mark.parametrize("cfg", [SMALL, RICH])
def test_the_plan_names_what_is_there(cfg: DecoderConfig) -> None:
    with torch.device("meta"):
        model = Decoder(cfg)
    plan, modules = cfg.plan(), dict(model.named_modules())
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    assert all(p.device.type == "meta" for p in model.parameters())
    for pattern, _ in plan.tensor:
        assert fnmatch.filter(modules, pattern), pattern
    styled = [p for p, style in plan.tensor if style != "gather"]
    for name in parameters:
        assert any(fnmatch.fnmatch(name.rpartition(".")[0], pattern) for pattern in styled), name
    for name, shape in parameters.items():
        assert plan.no_decay(name, shape) == ("norm" in name)
        if "norm" in name:
            assert plan.init(name, shape).kind == "ones"
        elif name.endswith(("wo.weight", "w2.weight")):
            assert plan.init(name, shape).std == pytest.approx(cfg.init_std / math.sqrt(2 * cfg.layers))
        else:
            assert plan.init(name, shape).std == cfg.init_std
    for canonical, alias in plan.tied:
        assert model.get_parameter(canonical) is model.get_parameter(alias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "model.hidden: 32 is not divisible by model.heads 5"),
        ({"kv_heads": 3}, "model.heads: 4 is not divisible by model.kv_heads 3"),
        ({"heads": 32}, "model.heads 32 = 1 a head"),
    ],
)
def test_an_impossible_config_is_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^model[^\n]*$") as caught:
        build_model(DecoderConfig(**{"layers": 2, "hidden": 32, "heads": 4, "vocab": 50, **change}))  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_wrong_mask_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = drawn(SMALL)
    expected = model(tokens())
    monkeypatch.setattr(
        "trainer.models.layers.attention.attend",
        lambda q, k, v, mask, **keys: torch.nn.functional.scaled_dot_product_attention(q, k, v),
    )
    assert attention.attend is not attend and not torch.allclose(model(tokens()), expected, rtol=1e-3)


@pytest.mark.parametrize("with_documents", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_block_compiles_in_one_piece(with_documents: bool) -> None:
    model = drawn(RICH)
    inputs = {"targets": tokens()}
    if with_documents:
        inputs["documents"] = torch.arange(16).expand(2, -1) // 5
    expected = torch.autograd.grad(model(tokens(), **inputs).sum(), list(model.parameters()))
    names = set(model.state_dict())
    for block in model.layers.values():
        block.compile(backend="aot_eager", fullgraph=True)
    compiled = torch.autograd.grad(model(tokens(), **inputs).sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(compiled, expected))
    assert set(model.state_dict()) == names
