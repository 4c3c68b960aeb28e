"""Ranks of a test that meet in this process or in others, by an announcement that is passed on by hand."""

from collections.abc import Callable

from parallel.world.meeting import find
from parallel.world.presence import Presence
from parallel.world.rendezvous import Place

HOST = "127.0.0.1"
ABOUT = {"device": "cpu", "gpu": ""}


def listen(presence: Presence) -> str:
    """Rank 0 listens; return its announcement."""
    return find.listen(presence, Place(HOST, (1,), announced=True, one_machine=True), dict(ABOUT))


def join(presence: Presence, announced: Callable[[], str], *, patience_seconds: float = 60.0) -> None:
    """Another rank connects to the rank 0 that is announced."""
    find.reach(
        presence,
        lambda: find.announced(announced(), HOST),
        dict(ABOUT),
        patience_seconds=patience_seconds,
    )
