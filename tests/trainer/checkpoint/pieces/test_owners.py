"""Which rank stored a piece: by a sum for whatever mesh, and by a list where no sum fits."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.checkpoint.pieces import cuts, owners
from trainer.checkpoint.pieces.cuts import Parts
from trainer.checkpoint.pieces.owners import Cut


def read_again(cut: Cut) -> Cut:
    return Cut.from_json(json.loads(json.dumps(cut.to_json())))


@st.composite
def stored(draw: st.DrawFn) -> tuple[tuple[int, ...], Parts, list[int], bool]:
    """(shape, parts, the rank of each piece, whether the ranks' axes are evenly numbered)."""
    dims = draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=2).map(tuple), max_size=3))
    shape = tuple(draw(st.integers(1, 12)) for _ in dims)
    counts = [count for each in dims for count in each]
    even = draw(st.booleans())
    steps = [
        [at * draw(st.integers(0, 40)) if even else (at and draw(st.integers(0, 40))) for at in range(count)]
        for count in counts
    ]
    if even:
        steps = [[at * (of[1] if len(of) > 1 else 0) for at in range(len(of))] for of in steps]
    first = draw(st.integers(0, 9))
    ranks = [first + sum(places) for places in itertools.product(*steps)]
    filled = cuts.filled(tuple(dims), shape)
    ranks = [rank if filled is None or number in filled else -1 for number, rank in enumerate(ranks)]
    return shape, tuple(dims), ranks, even


@settings(max_examples=300, deadline=None)
@given(stored())
def test_every_piece_is_found_at_its_rank(case: tuple[tuple[int, ...], Parts, list[int], bool]) -> None:
    _, parts, ranks, even = case
    cut = read_again(owners.described(parts, ranks))
    assert all(cut.rank_of(number) == rank for number, rank in enumerate(ranks) if rank >= 0)
    if even:
        assert cut.steps is not None and all(isinstance(step, int) for step in cut.steps)


@pytest.mark.parametrize("shards", [64, 4096])
def test_what_is_written_of_a_mesh_does_not_grow_with_it(shards: int) -> None:
    """tp 4 inside, and of each tp rank another replica saves."""
    replicas = (0, 3, 1, 0)
    ranks = [1000 * replicas[tp] + 4 * shard + tp for tp in range(4) for shard in range(shards)]
    cut = owners.described(((4, shards), (1,)), ranks)
    assert cut.steps == ((0, 3001, 1002, 3), 4, 0)
    assert read_again(cut) == cut


def test_the_parts_of_a_vector_are_read_as_they_were_written() -> None:
    for ranks in ([3, 4, 5], [3, 4, 9], [3, 7, -1]):
        cut = owners.described(((3,),), ranks, 40)
        assert cut.each == 40 and read_again(cut) == cut
    assert "each" not in owners.described(((3,),), [0, 1, 2]).to_json()


def test_ranks_that_no_sum_gives_are_listed() -> None:
    cut = read_again(owners.described(((2,), (2,)), [0, 1, 2, 4]))
    assert cut.ranks == (0, 1, 2, 4) and [cut.rank_of(number) for number in range(4)] == [0, 1, 2, 4]
    assert owners.described(((2,), (2,)), [0, 1, 2, -1]).ranks == ()
