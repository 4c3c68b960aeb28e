"""Llama 2 and 3, Mistral, Qwen2 and Qwen3: RMSNorm, rotary positions, gated feed-forward layers. Imports no
torch.

Their tensors have the same names; the architectures differ in biases, the norm of queries and keys, and
windows. Rotary features are paired as ours are (`trainer.models.layers.attention.rotate`), so no row changes
its place. Defaults of keys that a folder leaves out are those of the classes in `transformers` 5.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from trainer.huggingface.families.family import Family
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, same
from trainer.models.decoder.config import DecoderConfig

GATES = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
_THEIR_GATES = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh"}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_WINDOWED = ("qwen2", "qwen3")  # with a window in some layers
_KV_HEADS = {
    "mistral": 8,
    "qwen2": 32,
    "qwen3": 32,
}  # where the key is left out; else, and for null, all heads


def rope_from(fields: Fields, default_theta: float = 10000.0) -> dict[str, Any]:
    """Return our keys of rotary positions: from `rope_parameters`, or from `rope_theta` and `rope_scaling`,
    as versions of `transformers` before 5 write them.
    """
    theta = fields.number("rope_theta", default_theta)
    fields.must_be("partial_rotary_factor", None, 1, 1.0)
    rope = fields.inner("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    if fields.has("rope_parameters"):
        fields.must_be("rope_scaling", None)
    found: dict[str, Any] = {"rope_theta": rope.number("rope_theta", theta)}
    rope.must_be("partial_rotary_factor", None, 1, 1.0)
    kind = "rope_type" if rope.has("rope_type") else "type"
    scaling = rope.choice(kind, "default", {"default": "none", "linear": "linear", "llama3": "llama3"})
    rope.harmless("type", "rope_type")
    found["rope_scaling"] = scaling
    if scaling != "none":
        found["rope_factor"] = rope.number("factor")
    if scaling == "llama3":
        found["rope_low_frequency"] = rope.number("low_freq_factor")
        found["rope_high_frequency"] = rope.number("high_freq_factor")
        positions = fields.integer("max_position_embeddings", 2048)
        found["rope_original_positions"] = rope.integer("original_max_position_embeddings", positions)
    rope.finish()
    return found


def rope_to(cfg: DecoderConfig) -> dict[str, Any]:
    """Return their `rope_parameters`."""
    theirs: dict[str, Any] = {"rope_theta": cfg.rope_theta, "rope_type": "default"}
    if cfg.rope_scaling != "none":
        theirs |= {"rope_type": cfg.rope_scaling, "factor": cfg.rope_factor}
    if cfg.rope_scaling == "llama3":
        theirs |= {
            "low_freq_factor": cfg.rope_low_frequency,
            "high_freq_factor": cfg.rope_high_frequency,
            "original_max_position_embeddings": cfg.rope_original_positions,
        }
    return theirs


def _from_config(fields: Fields, *, model_type: str) -> DecoderConfig:
    heads = fields.integer("num_attention_heads", 32)
    hidden = fields.integer("hidden_size", 4096)
    mistral, qwen = model_type == "mistral", model_type in _WINDOWED
    fields.harmless("max_position_embeddings", "is_llama_config")
    fields.must_be("is_encoder_decoder", False)
    bias = "qkv" if model_type == "qwen2" else "none"
    if model_type in ("llama", "qwen3") and fields.flag("attention_bias", False):
        bias = "all"
    kv_heads = heads if fields.is_null("num_key_value_heads") else _KV_HEADS.get(model_type, heads)
    layers = fields.integer("num_hidden_layers", 32)
    window, global_every = 0, 0
    if mistral and not fields.is_null("sliding_window"):
        window = fields.integer("sliding_window", 4096)
    if qwen:
        window, global_every = _windows_from(fields, layers)
    return DecoderConfig(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", kv_heads),
        head_dim=fields.integer("head_dim", 128 if model_type == "qwen3" else hidden // heads),
        ffn_hidden=fields.integer(
            "intermediate_size", {"llama": 11008, "mistral": 14336}.get(model_type, 22016)
        ),
        vocab=fields.integer("vocab_size", 151936 if qwen else 32000),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        activation=fields.choice("hidden_act", "silu", GATES),
        attention_bias=bias,  # type: ignore[arg-type]
        mlp_bias=model_type == "llama" and fields.flag("mlp_bias", False),
        qk_norm=model_type == "qwen3",
        window=window,
        global_every=global_every,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        init_std=fields.number("initializer_range", 0.02),
        **rope_from(fields),
    )


def _windows_from(fields: Fields, layers: int) -> tuple[int, int]:
    """Return our (window, global_every) of Qwen's keys."""
    used = fields.flag("use_sliding_window", False)
    full_layers = fields.integer("max_window_layers", 28, least=0)
    kinds = fields.listed("layer_types")
    fields.harmless("sliding_window")  # where it is not used
    window = fields.integer("sliding_window", 4096) if used and not fields.is_null("sliding_window") else 0
    if kinds is None:
        kinds = [_SLIDING if window and layer >= full_layers else _FULL for layer in range(layers)]
    if _SLIDING not in kinds:
        window = 0
    for global_every in range(layers + 1) if window else ():
        if kinds == _layer_types(layers, global_every):
            return window, global_every
    if not window and kinds == [_FULL] * layers:
        return 0, 0
    raise fields.error("layer_types", f"not supported for {layers} layers: only {_FULL} in every N-th layer")


def _layer_types(layers: int, global_every: int) -> list[str]:
    return [_FULL if global_every and n % global_every == 0 else _SLIDING for n in range(layers)]


def _to_config(cfg: DecoderConfig, context: int, *, model_type: str) -> dict[str, Any]:
    theirs: dict[str, Any] = {
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.hidden,
        "intermediate_size": cfg.ffn_width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.key_value_heads,
        "head_dim": cfg.head_width,
        "hidden_act": _THEIR_GATES.get(cfg.activation, "silu"),
        "max_position_embeddings": context,
        "initializer_range": cfg.init_std,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "rope_parameters": rope_to(cfg),
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if model_type in ("llama", "qwen3"):
        theirs["attention_bias"] = cfg.attention_bias == "all"
    if model_type == "llama":
        theirs["mlp_bias"] = cfg.mlp_bias
    if model_type == "mistral":
        theirs["sliding_window"] = cfg.window or None
    if model_type in _WINDOWED:
        theirs |= {
            "use_sliding_window": bool(cfg.window),
            "sliding_window": cfg.window or None,
            "max_window_layers": cfg.layers,
            "layer_types": _layer_types(cfg.layers, cfg.global_every) if cfg.window else [_FULL] * cfg.layers,
        }
    return theirs


def _mapped(cfg: DecoderConfig) -> list[Mapped]:
    width, hidden = cfg.head_width, cfg.hidden
    queries, keys, inner = cfg.heads * width, cfg.key_value_heads * width, cfg.ffn_width
    matrices = {
        "attention.wq": ("self_attn.q_proj", queries, hidden, cfg.attention_bias != "none"),
        "attention.wk": ("self_attn.k_proj", keys, hidden, cfg.attention_bias != "none"),
        "attention.wv": ("self_attn.v_proj", keys, hidden, cfg.attention_bias != "none"),
        "attention.wo": ("self_attn.o_proj", hidden, queries, cfg.attention_bias == "all"),
        "mlp.w1": ("mlp.gate_proj", inner, hidden, cfg.mlp_bias),
        "mlp.w3": ("mlp.up_proj", inner, hidden, cfg.mlp_bias),
        "mlp.w2": ("mlp.down_proj", hidden, inner, cfg.mlp_bias),
    }
    vectors = {
        "attention_norm": ("input_layernorm", hidden),
        "mlp_norm": ("post_attention_layernorm", hidden),
    }
    if cfg.qk_norm:
        vectors |= {
            "attention.q_norm": ("self_attn.q_norm", width),
            "attention.k_norm": ("self_attn.k_norm", width),
        }
    found = [same("embed.weight", "model.embed_tokens.weight", (cfg.vocab, hidden))]
    for layer in range(cfg.layers):
        our, their = f"layers.{layer}", f"model.layers.{layer}"
        for name, (theirs, rows, columns, bias) in matrices.items():
            found.append(same(f"{our}.{name}.weight", f"{their}.{theirs}.weight", (rows, columns)))
            if bias:
                found.append(same(f"{our}.{name}.bias", f"{their}.{theirs}.bias", (rows,)))
        for name, (theirs, size) in vectors.items():
            found.append(same(f"{our}.{name}.weight", f"{their}.{theirs}.weight", (size,)))
    found.append(same("norm.weight", "model.norm.weight", (hidden,)))
    if not cfg.tie_embeddings:
        found.append(same("head.weight", "lm_head.weight", (cfg.vocab, hidden)))
    return found


def _family(architecture: str, model_type: str) -> Family:
    return Family(
        architecture=architecture,
        model_type=model_type,
        config=DecoderConfig,
        to_config=partial(_to_config, model_type=model_type),
        from_config=partial(_from_config, model_type=model_type),
        mapped=_mapped,
        base="model.",
        aliases={"model.embed_tokens.weight": "lm_head.weight"},
        own_tokenizer=model_type == "qwen2",
    )


LLAMA = _family("LlamaForCausalLM", "llama")
MISTRAL = _family("MistralForCausalLM", "mistral")
QWEN2 = _family("Qwen2ForCausalLM", "qwen2")
QWEN3 = _family("Qwen3ForCausalLM", "qwen3")
