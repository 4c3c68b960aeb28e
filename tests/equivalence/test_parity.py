"""A part of the parity matrix in which every pair of settings meets; `bench/parity.py` runs the whole.

Most of that part is slow.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import pytest

from parity_cases import BOUNDS, Combination, combinations, compare, covering, groups_of

# Four processes hold any two axes; `test_layouts` has the three together.
WORLD = 4
OFFERED = [one for one in combinations(model_factors=True, largest=WORLD) if not one.refusal()]
# By world: a pool of ranks once started is used to the end.
CHOSEN = sorted(covering(OFFERED, seed=0), key=lambda one: (one.engine, one.world, str(one)))


def settings(some: Iterable[Combination]) -> set[Any]:
    return set().union(*(groups_of(one, 1) for one in some))


# A quarter of them, and some for the settings that are not in this quarter.
ALWAYS = CHOSEN[::4]
for other in CHOSEN:
    if not settings([other]) <= settings(ALWAYS):
        ALWAYS.append(other)


def test_every_pair_of_settings_is_chosen() -> None:
    offered, chosen = (set().union(*map(groups_of, some)) for some in (OFFERED, CHOSEN))
    assert chosen == offered
    assert len(CHOSEN) < 90, "the choice has grown: look at what it costs"
    assert settings(ALWAYS) == settings(OFFERED), "a setting is only in what is slow"


@pytest.mark.parametrize(
    "one", [one if one in ALWAYS else pytest.param(one, marks=pytest.mark.slow) for one in CHOSEN], ids=str
)
def test_combination_leaves_no_trace(ranks: Any, one: Combination) -> None:
    if one.engine == "deepspeed":
        pytest.importorskip("deepspeed")
    # The second update is where a schedule that drops gradients shows; some runs go on for longer.
    steps = 10 if zlib.crc32(str(one).encode()) % 8 == 0 else 3
    found = compare(ranks, one, steps)
    assert found.worst < BOUNDS[one.precision]
