"""How the learnt numbers of scores begin. Imports no torch."""

import math

from common.model_plan import Init

PUBLISHED_SCALE = {"scale": 1 / 0.07, "scale_bias": 10.0}  # CLIP's and SigLIP's
PUBLISHED_BIAS = -10.0


def learnt_init(name: str, learnt: str, first_scale: float, first_bias: float) -> Init | None:
    """Return how a learnt number of a `TextHead` begins; None for any other parameter.

    first_scale: 0 for the published one.
    """
    if name.endswith(".log_scale"):
        return Init("constant", value=math.log(first_scale or PUBLISHED_SCALE[learnt]))
    return Init("constant", value=first_bias) if name.endswith(".score_bias") else None
