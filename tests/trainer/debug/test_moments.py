"""Moments of values that were divided are those of all values."""

import math

import pytest
import torch

from trainer.debug import moments
from trainer.debug.moments import Moments


def test_moments_are_those_of_the_values_however_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(40, 50, generator=torch.Generator().manual_seed(0)) + 3.0
    values[:4, :5] = 0.0
    values[7, 7] = -11.0
    whole = Moments.of(values)
    assert whole.count == 2000 and whole.zeros == 20 and whole.largest == 11.0
    assert whole.mean == pytest.approx(values.double().mean().item(), rel=1e-12)
    assert whole.std == pytest.approx(values.double().std(correction=0).item(), rel=1e-12)
    assert whole.norm == pytest.approx(values.double().norm().item(), rel=1e-12)
    monkeypatch.setattr(moments, "PART_ELEMENTS", 64)
    divided = Moments()
    for part in values.split(7, dim=1):  # not contiguous
        divided.add(Moments.of(part))
    assert vars(divided) == pytest.approx(vars(whole), rel=1e-12)
    assert vars(whole.scaled(-0.5)) == pytest.approx(vars(Moments.of(values * -0.5)), rel=1e-12)


def test_values_that_are_all_equal_have_no_spread() -> None:
    assert Moments.of(torch.full((1000,), 0.1)).std == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_value_shows(bad: float, dtype: torch.dtype) -> None:
    values = torch.full((70,), torch.finfo(dtype).max, dtype=dtype)
    assert Moments.of(values).finite  # the largest numbers of the type are no fault
    values[13] = bad
    found = Moments.of(values)
    assert not found.finite and math.isnan(found.norm) and not math.isfinite(found.largest)
    total = Moments.of(torch.ones(3))
    total.add(found)
    assert not total.finite and not math.isfinite(total.largest)
    assert Moments.of(values[:0]) == Moments()
