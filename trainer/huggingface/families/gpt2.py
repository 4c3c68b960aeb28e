"""GPT-2: LayerNorm, learned positions, biases. Imports no torch.

Its matrices are transposed, as [in, out], and queries, keys and values are columns of one.
"""

from __future__ import annotations

from typing import Any

from trainer.huggingface.families.family import Family
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, same, stacked
from trainer.models.decoder.config import DecoderConfig

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_THEIRS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}


def _from_config(fields: Fields) -> DecoderConfig:
    fields.must_be("scale_attn_weights", True)
    fields.must_be("scale_attn_by_inverse_layer_idx", False)
    fields.must_be("add_cross_attention", False)
    fields.must_be("is_encoder_decoder", False)
    # The scores in another precision; and heads of other tasks.
    fields.harmless("reorder_and_upcast_attn", "n_ctx", "summary_type", "summary_use_proj")
    fields.harmless("summary_activation", "summary_proj_to_labels", "summary_first_dropout")
    fields.harmless("predict_special_tokens", "n_special")
    hidden = fields.integer("n_embd", 768)
    heads = fields.integer("n_head", 12)
    return DecoderConfig(
        layers=fields.integer("n_layer", 12),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn_hidden=fields.integer("n_inner", 4 * hidden),
        vocab=fields.integer("vocab_size", 50257),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        norm="layer",
        activation=fields.choice("activation_function", "gelu_new", _ACTIVATIONS),
        attention_bias="all",
        mlp_bias=True,
        positions="learned",
        max_positions=fields.integer("n_positions", 1024),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        init_std=fields.number("initializer_range", 0.02),
    )


def _to_config(cfg: DecoderConfig, context: int) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab,
        "n_positions": cfg.max_positions,
        "n_embd": cfg.hidden,
        "n_layer": cfg.layers,
        "n_head": cfg.heads,
        "n_inner": cfg.ffn_width,
        "activation_function": _THEIRS.get(cfg.activation, "gelu_new"),
        "layer_norm_epsilon": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        "tie_word_embeddings": cfg.tie_embeddings,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        "use_cache": True,
    }


def _mapped(cfg: DecoderConfig) -> list[Mapped]:
    hidden, inner = cfg.hidden, cfg.ffn_width
    linear = (
        (("attention.wq", "attention.wk", "attention.wv"), "attn.c_attn", hidden, hidden),
        (("attention.wo",), "attn.c_proj", hidden, hidden),
        (("mlp.w1",), "mlp.c_fc", inner, hidden),
        (("mlp.w2",), "mlp.c_proj", hidden, inner),
    )
    found = [
        same("embed.weight", "transformer.wte.weight", (cfg.vocab, hidden)),
        same("places.weight", "transformer.wpe.weight", (cfg.max_positions, hidden)),
    ]
    for layer in range(cfg.layers):
        our, their = f"layers.{layer}", f"transformer.h.{layer}"
        for names, theirs, rows, columns in linear:
            for kind, width in (("weight", [columns]), ("bias", [])):
                ours = [f"{our}.{name}.{kind}" for name in names]
                found += stacked(ours, [rows] * len(ours), width, f"{their}.{theirs}.{kind}", transposed=True)
        for name, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
            for kind in ("weight", "bias"):
                found.append(same(f"{our}.{name}.{kind}", f"{their}.{theirs}.{kind}", (hidden,)))
    found += [same(f"norm.{kind}", f"transformer.ln_f.{kind}", (hidden,)) for kind in ("weight", "bias")]
    if not cfg.tie_embeddings:
        found.append(same("head.weight", "lm_head.weight", (cfg.vocab, hidden)))
    return found


GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    config=DecoderConfig,
    to_config=_to_config,
    from_config=_from_config,
    mapped=_mapped,
    base="transformer.",
    aliases={"transformer.wte.weight": "lm_head.weight"},
)
