"""BERT with its heads for masked tokens, and for next sentences where the model has one; `bert_tasks.py` has
its other heads. Imports no torch.

Defaults of keys that a folder leaves out are those of the class in `transformers` 5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainer.huggingface.families.family import Family
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, both, same
from trainer.models.encoder.config import EncoderConfig

_BLOCK = {
    "attention.wq": "attention.self.query",
    "attention.wk": "attention.self.key",
    "attention.wv": "attention.self.value",
    "attention.wo": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.w1": "intermediate.dense",
    "mlp.w2": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_PRE_TRAINING = "BertForPreTraining"
BASE = "bert."
"""Before the names of the tensors of the model without its head."""


def body_from(fields: Fields) -> dict[str, Any]:
    """Return the keys of the encoder before the heads."""
    fields.must_be("is_decoder", False)
    fields.must_be("add_cross_attention", False)
    fields.must_be("is_encoder_decoder", False)
    fields.must_be("position_embedding_type", "absolute")
    # Of BERT's first code, in the configs that Google published for Chinese and for many languages.
    fields.harmless("directionality", "pooler_fc_size", "pooler_num_attention_heads")
    fields.harmless("pooler_num_fc_layers", "pooler_size_per_head", "pooler_type")
    return {
        "layers": fields.integer("num_hidden_layers", 12),
        "hidden": fields.integer("hidden_size", 768),
        "heads": fields.integer("num_attention_heads", 12),
        "ffn_hidden": fields.integer("intermediate_size", 3072),
        "vocab": fields.integer("vocab_size", 30522),
        "norm_place": "post",
        # The head for masked tokens has the same function in it, and here always this one.
        "activation": fields.choice("hidden_act", "gelu", {"gelu": "gelu"}),
        "biases": True,
        "positions": "learned",
        "max_positions": fields.integer("max_position_embeddings", 512),
        "token_types": fields.integer("type_vocab_size", 2),
        "window": 0,
        "norm_eps": fields.number("layer_norm_eps", 1e-12),
        "init_std": fields.number("initializer_range", 0.02),
    }


def _from_config(fields: Fields) -> EncoderConfig:
    return EncoderConfig(
        **body_from(fields),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        next_sentence=_PRE_TRAINING in (fields.listed("architectures") or ()),
    )


def to_config(cfg: EncoderConfig, context: int) -> dict[str, Any]:
    """Return the keys of BERT with a head; see `Family.to_config`."""
    return {
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.hidden,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn_width,
        "hidden_act": "gelu",
        "max_position_embeddings": cfg.max_positions,
        "type_vocab_size": cfg.token_types or 2,
        "initializer_range": cfg.init_std,
        "layer_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    }


def body(cfg: EncoderConfig, base: str = BASE) -> list[Mapped]:
    """Return where the encoder's parameters before the heads are. base: what begins their names."""
    hidden, inner = cfg.hidden, cfg.ffn_width
    at = f"{base}embeddings"
    found = [
        same("embed.weight", f"{at}.word_embeddings.weight", (cfg.vocab, hidden)),
        same("position_embed.weight", f"{at}.position_embeddings.weight", (cfg.max_positions, hidden)),
        same("type_embed.weight", f"{at}.token_type_embeddings.weight", (cfg.token_types, hidden)),
        *both("embed_norm", f"{at}.LayerNorm", (hidden,)),
    ]
    shapes = {"mlp.w1": (inner, hidden), "mlp.w2": (hidden, inner)}
    for layer in range(cfg.layers):
        for ours, theirs in _BLOCK.items():
            shape = (hidden,) if ours.endswith("norm") else shapes.get(ours, (hidden, hidden))
            found += both(f"layers.{layer}.{ours}", f"{base}encoder.layer.{layer}.{theirs}", shape)
    return found


def pooler(cfg: EncoderConfig, base: str = BASE) -> list[Mapped]:
    """Return where the layer is that makes a text of its first token's hidden state."""
    return both("next_sentence.pooler", f"{base}pooler.dense", (cfg.hidden, cfg.hidden))


def _mapped(cfg: EncoderConfig) -> list[Mapped]:
    hidden, head = cfg.hidden, "cls.predictions"
    found = body(cfg)
    found += both("head.transform.dense", f"{head}.transform.dense", (hidden, hidden))
    found += both("head.transform.norm", f"{head}.transform.LayerNorm", (hidden,))
    if cfg.tie_embeddings:
        found.append(same("head.bias", f"{head}.bias", (cfg.vocab,)))
    else:  # then `cls.predictions.bias` is there too, and nothing reads it
        found += both("head", f"{head}.decoder", (cfg.vocab, hidden))
        found.append(replace(same("head.bias", f"{head}.bias", (cfg.vocab,)), copy=True))
    if cfg.next_sentence:
        found += pooler(cfg)
        found += both("next_sentence.classifier", "cls.seq_relationship", (2, hidden))
    return found


def _family(architecture: str) -> Family:
    return Family(
        architecture=architecture,
        model_type="bert",
        config=EncoderConfig,
        to_config=to_config,
        from_config=_from_config,
        mapped=_mapped,
        base=BASE,
        also=lambda cfg: [] if cfg.next_sentence else pooler(cfg),
        aliases={
            "bert.embeddings.word_embeddings.weight": "cls.predictions.decoder.weight",
            "cls.predictions.bias": "cls.predictions.decoder.bias",
        },
    )


BERT, BERT_PRE_TRAINING = _family("BertForMaskedLM"), _family(_PRE_TRAINING)
