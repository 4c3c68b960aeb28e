"""The learnt numbers of scores: the keys of models that have them, and how they begin. Imports no torch."""

import math
from typing import Annotated

from common.model_plan import Init
from trainer.models.pairs import Learnt

PUBLISHED_SCALE = {"scale": 1 / 0.07, "scale_bias": 10.0}  # CLIP's and SigLIP's
PUBLISHED_BIAS = -10.0

LearntNumbers = Annotated[
    Learnt, "what is learnt of the scores besides: their scale, as in CLIP, or scale and bias, as in SigLIP"
]
FirstScale = Annotated[
    float,
    "the learnt scale's first value, the inverse of a temperature; 0: as published, 1 / 0.07 with a scale "
    "alone, 10 with a bias",
    "≥ 0",
    "≤ 3.4e38",
]
FirstBias = Annotated[
    float,
    "the learnt bias's first value; the default is SigLIP's, for batches of 32,768 rows: about "
    "-ln(train.global_batch)",
    "≥ -3.4e38",
    "≤ 3.4e38",
]


def learnt_init(name: str, learnt: str, first_scale: float, first_bias: float) -> Init | None:
    """Return how a learnt number of a `TextHead` begins; None for any other parameter.

    first_scale: 0 for the published one.
    """
    if name.endswith(".log_scale"):
        return Init("constant", value=math.log(first_scale or PUBLISHED_SCALE[learnt]))
    return Init("constant", value=first_bias) if name.endswith(".score_bias") else None
