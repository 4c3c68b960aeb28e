"""How a decoder is cut, sharded and drawn. Imports no torch."""

import math

from common.model_plan import Init, ModelPlan, Tower


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
    residual_std = init_std / math.sqrt(2 * layers)

    def init(name: str, shape: tuple[int, ...]) -> Init:
        if len(shape) == 1:
            return Init("zeros" if name.endswith(".bias") else "ones")
        return Init("normal", residual_std if name.endswith((".wo.weight", ".w2.weight")) else init_std)

    qk_norms = ("q_norm", "k_norm") if qk_norm else ()
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
            ("layers.*.attention_norm", "sequence"),
            ("layers.*.attention", "gather"),
            *((f"layers.*.attention.{name}", "column") for name in ("wq", "wk", "wv")),
            *((f"layers.*.attention.{name}", "sequence") for name in qk_norms),
            ("layers.*.attention.core", "attention_core"),
            ("layers.*.attention.wo", "row"),
            ("layers.*.mlp_norm", "sequence"),
            ("layers.*.mlp", "gather"),
            *((f"layers.*.mlp.{name}", "column") for name in (("w1", "w3") if gated else ("w1",))),
            ("layers.*.mlp.w2", "row"),
            ("norm", "sequence"),
            ("head", "vocab_head"),
        ),
        tied=(("embed.weight", "head.weight"),) if tied else (),
        hidden_shape=lambda shape: (*shape, hidden),
        init=init,
        no_decay=lambda name, shape: len(shape) == 1,
    )
