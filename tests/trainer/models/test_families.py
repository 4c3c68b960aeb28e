"""GPT-2, Llama 2 and 3, Qwen 2 and 3, Mistral: configs of one decoder, with Hugging Face's logits."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from trainer.config import reading, schema
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder
from trainer.models.layers.attention import KVCache, attend
from trainer.models.layers.cross_entropy import chunked_nll_sum
from trainer.models.layers.head import LMHead
from trainer.models.layers.shared import RotaryTables, Stretch

ROOT = Path(__file__).resolve().parents[3]
SIZES: dict[str, Any] = {"layers": 3, "hidden": 48, "heads": 4, "vocab": 50}
GPT2 = DecoderConfig(
    **SIZES,
    norm="layer",
    activation="gelu_tanh",
    attention_bias="all",
    mlp_bias=True,
    positions="learned",
    max_positions=40,
    tie_embeddings=True,
)
LLAMA2 = DecoderConfig(**SIZES, ffn_hidden=100)
LLAMA3 = DecoderConfig(
    **SIZES,
    kv_heads=2,
    rope_theta=500000.0,
    rope_scaling="llama3",
    rope_factor=4.0,
    rope_original_positions=24,
)
QWEN2 = DecoderConfig(**SIZES, kv_heads=2, attention_bias="qkv", tie_embeddings=True)
QWEN3 = DecoderConfig(**SIZES, kv_heads=2, head_dim=20, qk_norm=True)
MISTRAL = DecoderConfig(**SIZES, kv_heads=2, head_dim=16, window=5)
NAMES = ("gpt2", "llama2", "llama3", "qwen2", "qwen3", "mistral")
FAMILIES = dict(zip(NAMES, (GPT2, LLAMA2, LLAMA3, QWEN2, QWEN3, MISTRAL)))
# What no published family has together.
MIXED = DecoderConfig(
    **SIZES,
    kv_heads=2,
    head_dim=10,
    norm="layer",
    activation="geglu",
    mlp_bias=True,
    attention_bias="all",
    rope_scaling="linear",
    window=4,
    global_every=2,
    attention_softcap=3.0,
    logit_softcap=2.0,
)
EVERY = [*FAMILIES.values(), MIXED]


def drawn(cfg: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(cfg).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start at one, biases at zero, where a missing one would not be seen
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def tokens(seq: int = 16) -> Tensor:
    return torch.randint(50, (2, seq), generator=torch.Generator().manual_seed(1))


def llama_like(model: Decoder, module: str, config: str, **settings: Any) -> nn.Module:
    """Their model with this one's weights; its names are those of Llama."""
    import transformers

    cfg = model.cfg
    common: dict[str, Any] = {
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.hidden,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.key_value_heads,
        "head_dim": cfg.head_width,
        "intermediate_size": cfg.ffn_width,
        "vocab_size": cfg.vocab,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "attn_implementation": "eager",
    }
    theirs = getattr(transformers, module)(getattr(transformers, config)(**(common | settings))).double()
    names = {
        "embed": "model.embed_tokens", "layers": "model.layers", "norm": "model.norm", "head": "lm_head",
        "attention_norm": "input_layernorm", "attention": "self_attn", "mlp_norm": "post_attention_layernorm",
        "wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj",
        "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj",
    }  # fmt: skip
    theirs.load_state_dict(
        {".".join(names.get(p, p) for p in name.split(".")): t for name, t in model.state_dict().items()}
    )
    return theirs


def gpt2(model: Decoder) -> nn.Module:
    """GPT-2 keeps its matrices transposed, and queries, keys and values in one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    cfg, own = model.cfg, model.state_dict()
    theirs = GPT2LMHeadModel(
        GPT2Config(
            n_layer=cfg.layers,
            n_embd=cfg.hidden,
            n_head=cfg.heads,
            n_positions=cfg.max_positions,
            vocab_size=cfg.vocab,
            layer_norm_epsilon=cfg.norm_eps,
            activation_function="gelu_new",
            attn_implementation="eager",
        )
    ).double()
    state = {"transformer.wte.weight": own["embed.weight"], "transformer.wpe.weight": own["places.weight"]}
    state["lm_head.weight"] = own["head.weight"]
    state |= {f"transformer.ln_f.{kind}": own[f"norm.{kind}"] for kind in ("weight", "bias")}
    for layer in range(cfg.layers):
        mine, other = f"layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            projections = [own[f"{mine}.attention.{name}.{kind}"] for name in ("wq", "wk", "wv")]
            linear = {
                "attn.c_attn": torch.cat(projections),
                "attn.c_proj": own[f"{mine}.attention.wo.{kind}"],
                "mlp.c_fc": own[f"{mine}.mlp.w1.{kind}"],
                "mlp.c_proj": own[f"{mine}.mlp.w2.{kind}"],
            }
            state |= {f"{other}.{name}.{kind}": tensor.t() for name, tensor in linear.items()}
            state[f"{other}.ln_1.{kind}"] = own[f"{mine}.attention_norm.{kind}"]
            state[f"{other}.ln_2.{kind}"] = own[f"{mine}.mlp_norm.{kind}"]
    assert not theirs.load_state_dict(state, strict=False).missing_keys
    return theirs.eval()  # it drops out by default


def hugging_face(family: str, model: Decoder) -> nn.Module:
    cfg = model.cfg
    stretched = {
        "rope_type": "llama3",
        "rope_theta": cfg.rope_theta,
        "factor": cfg.rope_factor,
        "low_freq_factor": cfg.rope_low_frequency,
        "high_freq_factor": cfg.rope_high_frequency,
        "original_max_position_embeddings": cfg.rope_original_positions,
    }
    return {
        "gpt2": lambda: gpt2(model),
        "llama2": lambda: llama_like(model, "LlamaForCausalLM", "LlamaConfig"),
        "llama3": lambda: llama_like(model, "LlamaForCausalLM", "LlamaConfig", rope_parameters=stretched),
        "qwen2": lambda: llama_like(model, "Qwen2ForCausalLM", "Qwen2Config"),
        "qwen3": lambda: llama_like(model, "Qwen3ForCausalLM", "Qwen3Config"),
        "mistral": lambda: llama_like(
            model, "MistralForCausalLM", "MistralConfig", sliding_window=cfg.window
        ),
    }[family]()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_hugging_face(family: str) -> None:
    model = drawn(FAMILIES[family])
    with torch.no_grad():
        theirs = hugging_face(family, model)(tokens(32)).logits
        # Rotary tables are float32 in both.
        assert torch.allclose(model(tokens(32)), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("family", "key", "value"), [
    ("gpt2", "activation", "gelu"), ("gpt2", "norm_eps", 1e-2), ("llama3", "rope_scaling", "none"),
    ("llama3", "rope_factor", 8.0), ("mistral", "window", 6), ("mistral", "window", 0),
])  # fmt: skip
def test_another_value_of_a_key_is_seen(family: str, key: str, value: Any) -> None:
    model = drawn(FAMILIES[family])
    theirs = hugging_face(family, model)
    other = Decoder(DecoderConfig(**{**vars(model.cfg), key: value})).double()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert not torch.allclose(other(tokens(32)), theirs(tokens(32)).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cfg", EVERY, ids=[*NAMES, "mixed"])
@pytest.mark.parametrize("cuts", [[1] * 16, [5, 1, 1, 6, 3]])
def test_cached_logits_are_the_uncached(cfg: DecoderConfig, cuts: list[int]) -> None:
    model, cache = drawn(cfg), KVCache(limit=20)
    with torch.inference_mode():
        parts = [model(part, cache=cache) for part in tokens().split(cuts, dim=1)]
        assert torch.allclose(torch.cat(parts, dim=1), model(tokens()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cfg", EVERY, ids=[*NAMES, "mixed"])
def test_two_halves_chained_are_the_whole(cfg: DecoderConfig) -> None:
    whole = drawn(cfg)
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    first.norm = first.head = None
    second.embed = second.places = None
    for key in list(whole.layers):
        del (first if int(key) >= 1 else second).layers[key]
    inputs = {"targets": tokens().roll(-1, 1), "documents": torch.arange(16).expand(2, -1) // 5}
    got = second(first(tokens(), **inputs), **inputs)
    assert torch.allclose(got, whole(tokens(), **inputs), rtol=1e-12)


@pytest.mark.parametrize("cfg", EVERY, ids=[*NAMES, "mixed"])
def test_documents_are_as_if_alone(cfg: DecoderConfig) -> None:
    model, lengths = drawn(cfg), [5, 1, 10]
    inputs = {
        "documents": torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None],
        "positions": torch.cat([torch.arange(n) for n in lengths])[None],
    }
    whole = tokens()[:1]
    alone = torch.cat([model(part) for part in whole.split(lengths, dim=1)], dim=1)
    assert torch.allclose(model(whole, **inputs), alone, rtol=1e-9, atol=1e-12)


def test_a_capped_attention_is_the_formula() -> None:
    q, k, v = (torch.randn(1, heads, 6, 4, dtype=torch.float64) for heads in (4, 2, 2))
    scores = 1.5 * torch.tanh(q @ k.repeat_interleave(2, 1).mT / 2 / 1.5)
    scores += torch.full((6, 6), -torch.inf, dtype=torch.float64).triu(1)
    expected = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    assert torch.allclose(attend(q, k, v, None, softcap=1.5), expected, rtol=1e-12)
    assert not torch.allclose(attend(q, k, v, None), expected, rtol=1e-2)


@pytest.mark.parametrize("compiler", [None, "aot_eager"])
def test_capped_logits_have_their_loss_and_gradients(compiler: str | None) -> None:
    torch.manual_seed(0)
    hidden = (3 * torch.randn(12, 8)).double().requires_grad_()
    weight = torch.randn(20, 8).double().requires_grad_()
    targets = torch.randint(20, (12,))
    targets[3] = -100
    capped = 2.0 * torch.tanh(hidden @ weight.T / 2.0)
    expected = nn.functional.cross_entropy(capped, targets, ignore_index=-100, reduction="sum")
    loss = chunked_nll_sum(hidden, weight, targets, chunk=5, softcap=2.0, compiler=compiler)
    assert torch.allclose(loss, expected[None], rtol=1e-12)
    got = torch.autograd.grad(loss.sum(), (hidden, weight))
    for mine, theirs in zip(got, torch.autograd.grad(expected, (hidden, weight))):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)
    head = LMHead(8, 20, softcap=2.0).double()
    head.weight.data.copy_(weight)
    assert torch.allclose(head(hidden), capped, rtol=1e-12)


def test_stretched_frequencies_end_as_they_are_said_to() -> None:
    frequencies = 10000.0 ** -(torch.arange(0, 64, 2) / 64)
    stretch = Stretch(factor=8.0, slow_only=True, low=1.0, high=4.0, original=1024)
    turns, found = 1024 * frequencies / 6.283185307, stretch.apply(frequencies)
    assert torch.equal(found[turns > 4.01], frequencies[turns > 4.01])
    assert torch.allclose(found[turns < 0.99], frequencies[turns < 0.99] / 8)
    between = (turns > 1.01) & (turns < 3.99)
    assert between.any() and ((found < frequencies) & (found > frequencies / 8))[between].all()
    everywhere = RotaryTables(8, 100.0, Stretch(2.0)).at(torch.tensor([[6]]))[0]
    assert torch.allclose(everywhere, RotaryTables(8, 100.0).at(torch.tensor([[3]]))[0])


def test_published_sizes() -> None:
    """docs/models.md has the keys of published models, and their numbers of parameters."""
    found = re.findall(
        r"^# .*: ([\d,]+) parameters\n(\{layers.+)$", (ROOT / "docs/models.md").read_text(), re.M
    )
    assert len(found) == 6
    for count, keys in found:
        model = schema.build(DecoderConfig, yaml.safe_load(keys))
        model.check()
        assert model.parameters().total == int(count.replace(",", "")), keys


@pytest.mark.parametrize(("change", "message"), [
    ({"head_dim": 15}, "model.head_dim: 15; model.positions=rope needs an even number"),
    ({"hidden": 50}, "model.hidden: 50 is not divisible by model.heads 4: change one, or set model.head_dim"),
    ({"global_every": 2}, "model.global_every: 2 needs model.window"),
    ({"rope_scaling": "llama3", "rope_low_frequency": 4.0}, "model.rope_low_frequency: 4 is not below"),
])  # fmt: skip
def test_an_impossible_family_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        DecoderConfig(**{**SIZES, **change}).check()
    assert message in str(caught.value)


def test_more_tokens_than_positions_are_refused(tmp_path: Any) -> None:
    config = tmp_path / "long.yaml"
    config.write_text(
        "model: {positions: learned, max_positions: 16}\ndata: {sources: [{path: x}], seq_len: 32}\n"
    )
    with pytest.raises(ValueError, match=r"data.seq_len=32 is more than model.max_positions=16"):
        reading.load(str(config), [])
    config.write_text("model: {positions: learned, rope_scaling: linear}\ndata: {sources: [{path: x}]}\n")
    with pytest.raises(ValueError, match=r"model.rope_scaling=linear needs model.positions=rope"):
        reading.load(str(config), [])
