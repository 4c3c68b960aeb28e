"""Sockets on which rank 0 listens: for the other ranks, and for the process group's store. Imports no
torch.
"""

import contextlib
import errno
import socket

from parallel.world.addresses import is_loopback
from parallel.world.rendezvous import LOOPBACK, Place


def listener(world: int, place: Place) -> socket.socket:
    """A socket that listens for the ranks: at loopback only, where they are known to be on one machine."""
    if place.listener >= 0:
        return socket.socket(fileno=place.listener)
    host = place.host if _is_loopback_name(place.host) else ""
    for port in (0,) if place.announced else place.ports:
        try:
            if place.one_machine or host:
                address = host if ":" in host else LOOPBACK
                return socket.create_server((address, port), family=family(address), backlog=max(128, world))
            return listen_everywhere(port, world)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise RuntimeError(f"rank 0 cannot listen at port {port}: {error.strerror}") from error
    tried = ", ".join(map(str, place.ports))
    raise RuntimeError(
        f"MASTER_PORT: port {tried} is in use on this machine: choose another, the same for every rank, or "
        "see with `ss -ltnp` what uses it"
    )


def listen_everywhere(port: int, world: int) -> socket.socket:
    """A socket that listens at all addresses of this machine; port 0: one that the system chooses."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=max(128, world), dualstack_ipv6=both)


def family(address: str) -> socket.AddressFamily:
    """IPv4 or IPv6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _is_loopback_name(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return is_loopback(host)
    return host == "localhost"
