"""How a decoder is cut, sharded and drawn. Imports no torch."""

from common.model_plan import ModelPlan, Tower
from trainer.models.blocks import block_styles, first_values


def decoder_plan(
    *,
    layers: int,
    hidden: int,
    init_std: float,
    qk_norm: bool,
    gated: bool,
    learned_positions: bool,
    tied: bool,
) -> ModelPlan:
    """Return the plan of a `Decoder`.

    Every matrix is normal with `init_std` (GPT-2's 0.02), and the projections that add to the residual stream
    are smaller by √(2 · layers), so that its variance does not grow with depth (Radford et al. 2019, section
    2.3). Norms start at one, biases at zero. Weight decay spares every parameter of one dimension.

    layers: number of blocks.
    hidden: width of the hidden states.
    init_std: standard deviation of the matrices.
    qk_norm: whether queries and keys are normalised.
    gated: whether the feed-forward layer has a gate, `w3`.
    learned_positions: whether positions are a table, `places`.
    tied: whether embedding and head are one matrix.
    """
    return ModelPlan(
        towers=(
            Tower(
                blocks="layers",
                first=("embed", "places") if learned_positions else ("embed",),
                last=("norm", "head"),
            ),
        ),
        tensor=(
            ("embed", "vocab_embedding"),
            *((("places", "split"),) if learned_positions else ()),
            *block_styles(gated=gated, qk_norm=qk_norm),
            ("norm", "sequence"),
            ("head", "vocab_head"),
        ),
        tied=(("embed.weight", "head.weight"),) if tied else (),
        hidden_shape=lambda shape: (*shape, hidden),
        init=first_values(init_std, residual_layers=layers),
        no_decay=lambda name, shape: len(shape) == 1,
    )
