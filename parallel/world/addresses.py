"""Names → addresses, and which network interface has an address. Imports no torch."""

import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

import psutil

from common.processes import boot_id

# How long a name may take to get an address.
RESOLVE_SECONDS = 40.0
_RETRY_SECONDS = 2.0


def resolve(
    name: str,
    *,
    otherwise: Callable[[str], str] = lambda name: "",
    patience_seconds: float = RESOLVE_SECONDS,
) -> tuple[str, ...]:
    """The addresses of a host name or address, those of other machines first. RuntimeError where it has none.

    A name that is not known yet, as of a machine that has just been started, is asked for again for
    `patience_seconds`.

    otherwise: name → another name or address for it, where the system's resolver knows none; empty: none.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        found = _look_up(name, deadline)
        if not found and (instead := otherwise(name)) and instead != name:
            found = _look_up(instead, deadline)
        if found:
            return tuple(sorted(found, key=is_loopback))
        if time.monotonic() + _RETRY_SECONDS > deadline:
            raise RuntimeError(
                f"{name}: this machine knows no address of it ({patience_seconds:g} s tried): name it in DNS "
                "or /etc/hosts on every machine, or set MASTER_ADDR to an address of rank 0's machine"
            )
        time.sleep(_RETRY_SECONDS)


def _look_up(name: str, deadline: float) -> list[str]:
    """The addresses that the system's resolver has by `deadline`; it may wait for its servers much longer."""
    found: list[str] = []

    def work() -> None:
        try:
            for _, _, _, _, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
                found.append(str(address[0]))
        except (OSError, UnicodeError):  # unknown; or no name at all
            return

    thread = threading.Thread(target=work, name="resolve", daemon=True)
    thread.start()
    thread.join(max(0.1, deadline - time.monotonic()))
    return list(dict.fromkeys(found))


def is_loopback(address: str) -> bool:
    """Whether an address is of use on its own machine only, as 127.0.1.1 in Debian's /etc/hosts."""
    return ipaddress.ip_address(address).is_loopback


def plain(address: str) -> str:
    """An address as it is written: an IPv4 address that an IPv6 socket shows as ::ffff:10.0.0.1 without
    that.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return address


def interface_of(address: str) -> str:
    """The name of this machine's interface that has an address; empty where none has."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return str(name)
    return ""


def own_addresses() -> Sequence[str]:
    """This machine's addresses that others may reach."""
    entries = [entry for group in psutil.net_if_addrs().values() for entry in group]
    found = [entry.address for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6)]
    return [one for one in found if not is_loopback(one) and not one.startswith("fe80:")]


def network() -> str:
    """What processes have in common that reach each other over the loopback interface: of one machine.

    A machine may hold several such networks, as containers do. Linux numbers them (network_namespaces(7)).
    Elsewhere it is the machine's name.
    """
    try:
        return f"{boot_id()}:{os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return socket.gethostname()
