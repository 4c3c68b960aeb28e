"""A plan that states another shape of hidden states than the model gives is told before a message is sent."""

from dataclasses import replace
from typing import Any

import pytest

from ranks import RankFailure
from runs import Case, curve
from trainer.models.decoder.config import DecoderConfig


def curve_with_wrong_shape(context: Any, case: Case) -> None:
    plan = DecoderConfig.plan
    DecoderConfig.plan = lambda self: replace(  # type: ignore[method-assign]
        plan(self), hidden_shape=lambda shape: (*shape, 7)
    )
    try:
        curve(context, case)
    finally:
        DecoderConfig.plan = plan  # type: ignore[method-assign]


def test_another_shape_than_the_plan_says(ranks: Any) -> None:
    case = Case(parallel={"pp": 2}, model={"layers": 2}, steps=1)
    with pytest.raises(
        RankFailure, match=r"stage 0 gives hidden states .*, and hidden_shape of .*, 7\): corr"
    ):
        ranks(2).run(curve_with_wrong_shape, case)
