"""What is alike in the blocks of all transformers here: how tensor parallelism cuts them, and how their
parameters are drawn. Imports no torch.
"""

import math
from collections.abc import Callable

from common.model_plan import Init, InitKind


def block_styles(*, gated: bool = False, qk_norm: bool = False) -> tuple[tuple[str, str], ...]:
    """Return the styles (see `ModelPlan.tensor`) of the modules of blocks `layers.*`, each of attention and a
    feed-forward layer with a norm beside it.

    gated: whether the feed-forward layer has a gate, `w3`.
    qk_norm: whether queries and keys are normalised.
    """
    attention, mlp = "layers.*.attention", "layers.*.mlp"
    return (
        (f"{attention}_norm", "sequence"),
        (attention, "gather"),
        *((f"{attention}.{name}", "column") for name in ("wq", "wk", "wv")),
        *((f"{attention}.{name}", "sequence") for name in ("q_norm", "k_norm") if qk_norm),
        (f"{attention}.core", "attention_core"),
        (f"{attention}.wo", "row"),
        (f"{mlp}_norm", "sequence"),
        (mlp, "gather"),
        *((f"{mlp}.{name}", "column") for name in (("w1", "w3") if gated else ("w1",))),
        (f"{mlp}.w2", "row"),
    )


def first_values(
    std: float, *, residual_layers: int, kind: InitKind = "normal"
) -> Callable[[str, tuple[int, ...]], Init]:
    """Return how parameters are drawn, as `ModelPlan.init` has it: norms start at one, biases at zero, and
    matrices are drawn with the standard deviation `std`.

    residual_layers: number of blocks that add to one residual stream. Their projections that add to it are
        smaller by √(2 · layers), so that its variance does not grow with depth (Radford et al. 2019, section
        2.3). 0: they are drawn as all others, since norms behind the sums bound the variance.
    kind: distribution of the matrices.
    """
    residual_std = std / math.sqrt(2 * residual_layers) if residual_layers else std

    def init(name: str, shape: tuple[int, ...]) -> Init:
        if len(shape) == 1:
            return Init("zeros" if name.endswith(".bias") else "ones")
        adds = ".layers." in f".{name}" and name.endswith((".wo.weight", ".w2.weight"))
        return Init(kind, residual_std if adds else std)

    return init
