"""How an encoder is cut, sharded and drawn. Imports no torch."""

from common.model_plan import ModelPlan, Tower
from trainer.models.blocks import block_styles, first_values


def encoder_plan(
    *,
    layers: int,
    hidden: int,
    init_std: float,
    gated: bool,
    pre_norm: bool,
    learned_positions: bool,
    token_types: bool,
    next_sentence: bool,
    tied: bool,
) -> ModelPlan:
    """Return the plan of an `Encoder`.

    Every matrix is normal with `init_std` (BERT's 0.02). With norms before the sums, the projections that add
    to the residual stream are smaller by √(2 · layers), as in a decoder; norms behind the sums take that
    over. Norms start at one, biases at zero. Weight decay spares every parameter of one dimension.

    layers: number of blocks.
    hidden: width of the hidden states.
    init_std: standard deviation of the matrices.
    gated: whether the feed-forward layer has a gate, `w3`.
    pre_norm: whether norms are before attention and feed-forward layer, with one at the end.
    learned_positions: whether positions are a table.
    token_types: whether there are vectors of token types.
    next_sentence: whether there is a head for the first token.
    tied: whether embedding and head are one matrix.
    """
    tables = ("position_embed",) * learned_positions + ("type_embed",) * token_types
    return ModelPlan(
        towers=(
            Tower(
                blocks="layers",
                first=("embed", *tables, "embed_norm"),
                last=(*(("norm",) * pre_norm), *(("next_sentence",) * next_sentence), "head"),
            ),
        ),
        tensor=(
            ("embed", "vocab_embedding"),
            *((table, "split") for table in tables),
            ("embed_norm", "sequence"),
            *block_styles(gated=gated),
            ("norm", "sequence"),
            ("next_sentence", "alike"),
            ("next_sentence.*", "sequence"),
            ("head", "vocab_head"),
            ("head.transform.*", "sequence"),
        ),
        tied=(("embed.weight", "head.weight"),) if tied else (),
        hidden_shape=lambda shape: (*shape, hidden),
        init=first_values(init_std, residual_layers=layers if pre_norm else 0),
        no_decay=lambda name, shape: len(shape) == 1,
    )
