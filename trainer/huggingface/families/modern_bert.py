"""ModernBERT with its head for masked tokens; `modern_bert_tasks.py` has its other heads. Imports no torch.

Queries, keys and values are rows of one matrix, and so are the two of the gated feed-forward layer. Defaults
of keys that a folder leaves out are those of the class in `transformers` 5.
"""

from __future__ import annotations

from typing import Any

from trainer.huggingface.families.family import Family
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, same, stacked
from trainer.models.encoder.config import EncoderConfig

_GATES = {"gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "silu": "swiglu"}
_THEIR_GATES = {ours: theirs for theirs, ours in _GATES.items()}
_SLIDING, _FULL = "sliding_attention", "full_attention"
BASE = "model."
"""Before the names of the tensors of the model without its head."""
_BIASES = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")


def body_from(fields: Fields) -> dict[str, Any]:
    """Return the keys of the encoder before the heads."""
    layers = fields.integer("num_hidden_layers", 22)
    biases = fields.flag(_BIASES[0], False)
    for key in _BIASES[1:]:
        if fields.flag(key, False) != biases:
            raise fields.error(key, f"not supported: the same as {_BIASES[0]}={biases} is")
    fields.must_be("classifier_activation", "gelu")
    fields.must_be("position_embedding_type", None, "absolute")
    fields.must_be("is_encoder_decoder", False)
    fields.harmless("max_position_embeddings", "initializer_cutoff_factor")
    fields.harmless("embedding_dropout", "mlp_dropout", "deterministic_flash_attn", "sparse_prediction")
    fields.harmless(
        "sparse_pred_ignore_index", "reference_compile", "repad_logits_with_grad", "layer_norm_eps"
    )
    local = fields.integer("local_attention", 128)
    if local % 2:
        raise fields.error("local_attention", "not supported: an even number is")
    every = fields.integer("global_attn_every_n_layers", 3)
    kinds = fields.listed("layer_types") or _layer_types(layers, every)
    window, global_every = _window(fields, kinds, layers, local // 2)
    thetas = {
        kind: fields.number(key, default)
        for kind, key, default in (
            (_FULL, "global_rope_theta", 160000.0),
            (_SLIDING, "local_rope_theta", 10000.0),
        )
    }
    ropes = fields.inner("rope_parameters")
    for kind in thetas:
        rope = ropes.inner(kind)
        rope.must_be("rope_type", "default")
        thetas[kind] = rope.number("rope_theta", thetas[kind])
        rope.finish()
    ropes.finish()
    return {
        "layers": layers,
        "hidden": fields.integer("hidden_size", 768),
        "heads": fields.integer("num_attention_heads", 12),
        "ffn_hidden": fields.integer("intermediate_size", 1152),
        "vocab": fields.integer("vocab_size", 50368),
        "activation": fields.choice("hidden_activation", "gelu", _GATES),
        "biases": biases,
        "rope_theta": thetas[_FULL],
        "rope_theta_local": thetas[_SLIDING],
        "window": window,
        "global_every": global_every,
        "norm_eps": fields.number("norm_eps", 1e-5),
        "init_std": fields.number("initializer_range", 0.02),
    }


def _from_config(fields: Fields) -> EncoderConfig:
    fields.must_be("decoder_bias", True)
    fields.harmless("classifier_pooling")
    return EncoderConfig(**body_from(fields), tie_embeddings=fields.flag("tie_word_embeddings", True))


def _layer_types(layers: int, global_every: int) -> list[str]:
    return [_FULL if global_every and n % global_every == 0 else _SLIDING for n in range(layers)]


def _window(fields: Fields, kinds: list[Any], layers: int, window: int) -> tuple[int, int]:
    """Return our (window, global_every)."""
    if kinds == [_FULL] * layers:
        return 0, 0
    for every in range(layers + 1):
        if kinds == _layer_types(layers, every):
            return window, every
    raise fields.error("layer_types", f"not supported for {layers} layers: only {_FULL} in every N-th layer")


def to_config(cfg: EncoderConfig, context: int) -> dict[str, Any]:
    """Return the keys of ModernBERT with a head; see `Family.to_config`."""
    theta = {_FULL: cfg.rope_theta, _SLIDING: cfg.rope_theta_local}
    return {
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.hidden,
        "intermediate_size": cfg.ffn_width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "hidden_activation": _THEIR_GATES.get(cfg.activation, "gelu"),
        "max_position_embeddings": context,
        "initializer_range": cfg.init_std,
        "norm_eps": cfg.norm_eps,
        **dict.fromkeys(_BIASES, cfg.biases),
        "decoder_bias": True,
        "layer_types": [_SLIDING if cfg.window_of(layer) else _FULL for layer in range(cfg.layers)],
        "local_attention": 2 * cfg.window or 128,
        "rope_parameters": {
            kind: {"rope_theta": value, "rope_type": "default"} for kind, value in theta.items()
        },
        **dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"), 0.0),
        "tie_word_embeddings": cfg.tie_embeddings,
        # Left out, they would be those of the published model.
        **dict.fromkeys(("cls_token_id", "sep_token_id")),
    }


def body(cfg: EncoderConfig, base: str = BASE, *, transform: bool = False) -> list[Mapped]:
    """Return where the encoder's parameters before the heads are.

    base: what begins their names.
    transform: and those of the layer with which all heads begin.
    """
    hidden, inner = cfg.hidden, cfg.ffn_width
    kinds = ("weight", "bias") if cfg.biases else ("weight",)
    found = [same("embed.weight", f"{base}embeddings.tok_embeddings.weight", (cfg.vocab, hidden))]
    norms = {"embed_norm": f"{base}embeddings.norm", "norm": f"{base}final_norm"}
    matrices: list[Any] = []
    if transform:
        norms["head.transform.norm"] = "head.norm"
        matrices.append((["head.transform.dense"], "head.dense", [hidden], hidden))
    for layer in range(cfg.layers):
        our, their = f"layers.{layer}", f"{base}layers.{layer}"
        if layer:
            norms[f"{our}.attention_norm"] = f"{their}.attn_norm"
        norms[f"{our}.mlp_norm"] = f"{their}.mlp_norm"
        three = [f"{our}.attention.{name}" for name in ("wq", "wk", "wv")]
        matrices += [
            (three, f"{their}.attn.Wqkv", [hidden] * 3, hidden),
            ([f"{our}.attention.wo"], f"{their}.attn.Wo", [hidden], hidden),
            ([f"{our}.mlp.w1", f"{our}.mlp.w3"], f"{their}.mlp.Wi", [inner] * 2, hidden),
            ([f"{our}.mlp.w2"], f"{their}.mlp.Wo", [hidden], inner),
        ]
    for ours, theirs, heights, width in matrices:
        for kind in kinds:
            names = [f"{name}.{kind}" for name in ours]
            found += stacked(names, heights, [width] if kind == "weight" else [], f"{theirs}.{kind}")
    for our, their in norms.items():
        found += [same(f"{our}.{kind}", f"{their}.{kind}", (hidden,)) for kind in kinds]
    return found


def _mapped(cfg: EncoderConfig) -> list[Mapped]:
    found = [*body(cfg, transform=True), same("head.bias", "decoder.bias", (cfg.vocab,))]
    if not cfg.tie_embeddings:
        found.append(same("head.weight", "decoder.weight", (cfg.vocab, cfg.hidden)))
    return found


MODERN_BERT = Family(
    architecture="ModernBertForMaskedLM",
    model_type="modernbert",
    config=EncoderConfig,
    to_config=to_config,
    from_config=_from_config,
    mapped=_mapped,
    base=BASE,
    aliases={"model.embeddings.tok_embeddings.weight": "decoder.weight"},
)
