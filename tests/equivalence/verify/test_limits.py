"""What one tensor of roundings alone does to the limits of the others: nothing."""

from trainer.verify.deviation import Deviation
from trainer.verify.limits import Limits, Spread, TensorSpread


def spread(**distances: float) -> Spread:
    return {
        f"optim.exp_avg.{name}": TensorSpread(norm=1.0, distance=distance, scales=[distance / 10] * 3)
        for name, distance in distances.items()
    }


def test_a_tensor_of_roundings_has_a_limit_of_its_own() -> None:
    limits = Limits(spread(key_bias=1.4, weight=3e-4, other=1e-4), "fp32")
    assert limits.distance("optim.exp_avg.weight") == limits.distance("optim.exp_avg.other") == 6e-4
    assert limits.distance("optim.exp_avg.key_bias") == 100
    assert limits.common("optim.exp_avg") < 2e-4
    alike = [Deviation(f"optim.exp_avg.{name}", 1.0, 0.01, 0.01) for name in ("weight", "other")]
    noise = Deviation("optim.exp_avg.key_bias", 1.0, 1.4, -0.9)
    assert limits.common_factor([*alike, noise]) == limits.common_factor(alike) > 0.009
    assert limits.common_factor([noise]) == 0.0


def test_without_such_a_tensor_the_farthest_gives_the_limit_of_its_kind() -> None:
    limits = Limits(spread(weight=0.4, other=1e-4), "bf16")
    assert limits.distance("optim.exp_avg.weight") == limits.distance("optim.exp_avg.other") == 0.8


def test_nothing_but_roundings_is_no_fault() -> None:
    limits = Limits(spread(key_bias=1.4), "fp32")
    assert limits.distance("optim.exp_avg.key_bias") == 100
    assert limits.common_factor([Deviation("optim.exp_avg.key_bias", 1.0, 1.4, 0.9)]) == 0.0
    assert limits.common("optim.exp_avg") == 1e-5


def test_the_limit_of_roundings_is_far_below_a_gradient_that_is_not_zero() -> None:
    """Second moments of roundings were 7.1 apart on two ranks, where the nudged runs were 3.3."""
    assert 7.1 < Limits(spread(key_bias=3.3), "fp32").distance("optim.exp_avg.key_bias") == 100
    assert Limits(spread(key_bias=80.0), "fp32").distance("optim.exp_avg.key_bias") == 160


def test_an_update_is_one_of_roundings_where_its_moments_are() -> None:
    """A short bias's update comes out nearer than its moments: the few elements that turned are left out."""
    updates = {
        f"model.{name}": TensorSpread(norm=1.0, distance=distance, scales=[distance / 10] * 3)
        for name, distance in {"key_bias": 0.32, "weight": 3e-3}.items()
    }
    limits = Limits(spread(key_bias=1.4, weight=3e-4) | updates, "fp32")
    assert limits.distance("model.weight") == 6e-3
    noise = Deviation("model.key_bias", 1.0, 0.5, -0.4)
    assert limits.common_factor([Deviation("model.weight", 1.0, 0.01, 0.01), noise]) == 0.01
