"""One rank's way to rank 0, through a launcher's store where there is one."""

from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from parallel.world.addresses import resolve
from parallel.world.meeting import find
from parallel.world.presence import Presence
from parallel.world.rendezvous import LOOPBACK, Place
from parallel.world.wire import Message

_ANNOUNCEMENT = "germinal/presence"  # the key under which rank 0 announces itself in a launcher's store


def find_rank_0(
    presence: Presence,
    at: Place,
    about: Message,
    *,
    timeout: timedelta,
    otherwise: Callable[[str], str],
    speaks: bool,
) -> None:
    """On rank 0: listen for the others. On another rank: connect to rank 0.

    at: where rank 0 is to be found.
    about: what this rank says of itself.
    timeout: RuntimeError where rank 0 has not been found by then.
    otherwise: name → another name or address for it, where the system's resolver has none.
    speaks: say after a while which rank 0 this rank waits for.
    """
    if presence.rank == 0 and not at.announced:
        find.listen(presence, at, about)
        _check_own_name(presence, at, otherwise)
        return
    store: dist.Store | None = None
    addresses = resolve(at.host, otherwise=otherwise) if not at.one_machine else (LOOPBACK,)
    if at.announced:
        addresses = (find.answering(addresses, at.ports[0]),)
        store = dist.TCPStore(
            addresses[0], at.ports[0], presence.world, timeout=timeout, wait_for_workers=False
        )
        if presence.rank == 0:
            store.set(_ANNOUNCEMENT, find.listen(presence, at, about))
            return

    def targets() -> list[find.Target]:
        if store is None:
            return [find.Target(address, port, at.key) for address in addresses for port in at.ports]
        if not store.check([_ANNOUNCEMENT]):
            return []
        return find.announced(store.get(_ANNOUNCEMENT).decode(), addresses[0])

    find.reach(
        presence,
        targets,
        about,
        patience_seconds=timeout.total_seconds(),
        name=at.host,
        speaks=speaks,
    )


def _check_own_name(presence: Presence, at: Place, otherwise: Callable[[str], str]) -> None:
    """On rank 0: RuntimeError where the name has no address and no rank has connected: the others cannot find
    it either.
    """
    if at.one_machine:
        return
    try:
        resolve(at.host, otherwise=otherwise)
    except RuntimeError:
        if len(presence.arrivals.hellos) == 1:
            raise
