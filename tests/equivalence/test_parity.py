"""A part of the parity matrix in which every pair of settings meets; `bench/parity.py` runs the whole."""

import zlib
from typing import Any

import pytest

from parity_cases import BOUNDS, Combination, combinations, compare, covering, groups_of

# Four processes hold any two axes; `test_layouts` has the three together.
WORLD = 4
OFFERED = [one for one in combinations(model_factors=True, largest=WORLD) if not one.refusal()]
# By world: a pool of ranks once started is used to the end.
CHOSEN = sorted(covering(OFFERED, seed=0), key=lambda one: (one.engine, one.world, str(one)))


def test_every_pair_of_settings_is_chosen() -> None:
    offered, chosen = (set().union(*map(groups_of, some)) for some in (OFFERED, CHOSEN))
    assert chosen == offered
    assert len(CHOSEN) < 90, "the choice has grown: look at what it costs"


@pytest.mark.parametrize("one", CHOSEN, ids=str)
def test_combination_leaves_no_trace(ranks: Any, one: Combination) -> None:
    if one.engine == "deepspeed":
        pytest.importorskip("deepspeed")
    # The second update is where a schedule that drops gradients shows; some runs go on for longer.
    steps = 10 if zlib.crc32(str(one).encode()) % 8 == 0 else 3
    found = compare(ranks, one, steps)
    assert found.worst < BOUNDS[one.precision]
