"""What a model costs, from its config alone: parameters, arithmetic, state. Imports no torch.

Conventions. A multiply-add is 2 floating-point operations; backward is twice the forward; work done again
(recomputation) is not counted. Matrix products and attention only: norms, rotations, activations and the
embedding look-up are left out. Attention counts the full seq × seq scores although half are masked. This is
the convention of PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), so figures compare with others'.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.models.decoder.config import DecoderConfig


@dataclass(frozen=True)
class Parts:
    """One number for each part that a pipeline can cut between; `block` is that of a single block."""

    embed: float
    block: float
    head: float

    def total(self, layers: int) -> float:
        return self.embed + layers * self.block + self.head


def parameters_by_part(cfg: DecoderConfig) -> Parts:
    """Parameters of the embedding, of one block, and of the final norm and head.

    Tied embeddings are counted where they are computed with, in the head: a stage that holds only the
    embedding then needs a copy that this does not count.
    """
    attention = 2 * cfg.hidden * cfg.head_dim * (cfg.heads + cfg.key_value_heads)
    norms = 2 * cfg.hidden + (2 * cfg.head_dim if cfg.qk_norm else 0)
    table = cfg.vocab * cfg.hidden
    return Parts(
        embed=0 if cfg.tie_embeddings else table,
        block=attention + 3 * cfg.hidden * cfg.ffn_width + norms,
        head=table + cfg.hidden,
    )


def parameters(cfg: DecoderConfig) -> int:
    """All parameters, tied ones once."""
    return int(parameters_by_part(cfg).total(cfg.layers))


def largest_key(cfg: DecoderConfig) -> str:
    """`model.KEY=VALUE` of the size that gives the model most of its parameters, for messages."""
    parts = parameters_by_part(cfg)
    if parts.embed + parts.head > cfg.layers * parts.block and cfg.vocab > cfg.hidden:
        return f"model.vocab={cfg.vocab}"
    name = max(("hidden", "layers", "ffn_hidden"), key=lambda name: getattr(cfg, name))
    return f"model.{name}={getattr(cfg, name)}"


def flops_per_token_by_part(cfg: DecoderConfig, seq: int) -> Parts:
    """Training operations (forward and backward) a token, in sequences of `seq` tokens.

    A block is 6 · its matrices' parameters + 12 · hidden · seq; the head 6 · hidden · vocab; the embedding 0.
    """
    attention = 2 * cfg.hidden * cfg.head_dim * (cfg.heads + cfg.key_value_heads)
    matrices = attention + 3 * cfg.hidden * cfg.ffn_width
    return Parts(embed=0, block=6 * matrices + 12 * cfg.hidden * seq, head=6 * cfg.hidden * cfg.vocab)


def flops_per_token(cfg: DecoderConfig, seq: int) -> float:
    """Training operations a token of the whole model; a forward alone is a third of it."""
    return flops_per_token_by_part(cfg, seq).total(cfg.layers)


def state_bytes(cfg: DecoderConfig) -> dict[str, int]:
    """Bytes that training holds of the whole model: float32 parameters, gradients, AdamW's two moments.

    16 bytes a parameter. Which of it a rank holds whole and which in part is the engine's to say (ZeRO).
    """
    each = 4 * parameters(cfg)
    return {"parameters": each, "gradients": each, "moments": 2 * each}
