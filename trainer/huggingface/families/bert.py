"""BERT with its heads for masked tokens, and for next sentences where the model has one. Imports no torch.

Defaults of keys that a folder leaves out are those of the class in `transformers` 5.
"""

from __future__ import annotations

from typing import Any

from trainer.huggingface.families.family import Family
from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, same
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


def _from_config(fields: Fields) -> EncoderConfig:
    fields.must_be("is_decoder", False)
    fields.must_be("add_cross_attention", False)
    fields.must_be("is_encoder_decoder", False)
    fields.must_be("position_embedding_type", "absolute")
    # Untied, the head has two biases, of which one is not used.
    fields.must_be("tie_word_embeddings", True)
    hidden = fields.integer("hidden_size", 768)
    return EncoderConfig(
        layers=fields.integer("num_hidden_layers", 12),
        hidden=hidden,
        heads=fields.integer("num_attention_heads", 12),
        ffn_hidden=fields.integer("intermediate_size", 3072),
        vocab=fields.integer("vocab_size", 30522),
        tie_embeddings=True,
        norm_place="post",
        # The head for masked tokens has the same function in it, and here always this one.
        activation=fields.choice("hidden_act", "gelu", {"gelu": "gelu"}),
        biases=True,
        positions="learned",
        max_positions=fields.integer("max_position_embeddings", 512),
        token_types=fields.integer("type_vocab_size", 2),
        window=0,
        next_sentence=_PRE_TRAINING in (fields.listed("architectures") or ()),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        init_std=fields.number("initializer_range", 0.02),
    )


def _to_config(cfg: EncoderConfig, context: int) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.hidden,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn_width,
        "hidden_act": "gelu",
        "max_position_embeddings": cfg.max_positions,
        "type_vocab_size": max(1, cfg.token_types),
        "initializer_range": cfg.init_std,
        "layer_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    }


def _mapped(cfg: EncoderConfig) -> list[Mapped]:
    hidden, inner = cfg.hidden, cfg.ffn_width
    at = "bert.embeddings"
    found = [
        same("embed.weight", f"{at}.word_embeddings.weight", (cfg.vocab, hidden)),
        same("position_embed.weight", f"{at}.position_embeddings.weight", (cfg.max_positions, hidden)),
        same("type_embed.weight", f"{at}.token_type_embeddings.weight", (cfg.token_types, hidden)),
        *_both("embed_norm", f"{at}.LayerNorm", (hidden,)),
    ]
    shapes = {"mlp.w1": (inner, hidden), "mlp.w2": (hidden, inner)}
    for layer in range(cfg.layers):
        for ours, theirs in _BLOCK.items():
            shape = (hidden,) if ours.endswith("norm") else shapes.get(ours, (hidden, hidden))
            found += _both(f"layers.{layer}.{ours}", f"bert.encoder.layer.{layer}.{theirs}", shape)
    head = "cls.predictions"
    found += _both("head.transform.dense", f"{head}.transform.dense", (hidden, hidden))
    found += _both("head.transform.norm", f"{head}.transform.LayerNorm", (hidden,))
    found.append(same("head.bias", f"{head}.bias", (cfg.vocab,)))
    if cfg.next_sentence:
        found += _both("next_sentence.pooler", "bert.pooler.dense", (hidden, hidden))
        found += _both("next_sentence.classifier", "cls.seq_relationship", (2, hidden))
    return found


def _both(ours: str, theirs: str, shape: tuple[int, ...]) -> list[Mapped]:
    """A layer's weight of `shape`, and its bias."""
    return [
        same(f"{ours}.weight", f"{theirs}.weight", shape),
        same(f"{ours}.bias", f"{theirs}.bias", shape[:1]),
    ]


def _family(architecture: str) -> Family:
    return Family(
        architecture=architecture,
        model_type="bert",
        config=EncoderConfig,
        to_config=_to_config,
        from_config=_from_config,
        mapped=_mapped,
        base="bert.",
        aliases={
            "bert.embeddings.word_embeddings.weight": "cls.predictions.decoder.weight",
            "cls.predictions.bias": "cls.predictions.decoder.bias",
        },
    )


BERT, BERT_PRE_TRAINING = _family("BertForMaskedLM"), _family(_PRE_TRAINING)
