"""Rank 0 waits until all ranks have come, and tells them to begin. Imports no torch."""

import queue
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping

from common.standard_error import write_line
from parallel.world import slurm
from parallel.world.addresses import interface_of, is_loopback, plain
from parallel.world.meeting.listeners import family, listen_everywhere
from parallel.world.presence import Presence
from parallel.world.rendezvous import LOOPBACK, missing, shared, unlike, until

# After this long rank 0 says who is missing.
SILENT_SECONDS = 30.0


def gather(presence: Presence, *, patience_seconds: float, hosts: Callable[[int], str]) -> None:
    """On rank 0: wait until every rank is here, and tell all of them to begin or why not.

    hosts: the machine of a rank that has not come, as far as that is known.

    RuntimeError where some do not come. ValueError, on every rank, where they do not fit together.
    """
    begun = time.monotonic()
    arrivals = presence.arrivals
    if not arrivals.settled.wait(min(SILENT_SECONDS, patience_seconds)):
        write_line(
            f"rank 0 on {presence.host} waits for {_absent(presence, hosts)}, "
            f"{until(begun + patience_seconds)}"
        )
    if not arrivals.settled.wait(max(0.0, patience_seconds - (time.monotonic() - begun))):
        raise RuntimeError(
            f"{_absent(presence, hosts)} did not come within {patience_seconds:g} s: was it started, with "
            "the same MASTER_ADDR, MASTER_PORT and number of ranks?"
        )
    hellos = arrivals.hellos
    wrong = (
        arrivals.refused
        or unlike({rank: str(hello["device"]) for rank, hello in hellos.items()})
        or shared({rank: (str(hello["host"]), str(hello["gpu"])) for rank, hello in hellos.items()})
    )
    if wrong:
        presence.begin({"error": wrong})
        raise ValueError(wrong)


def open_store(presence: Presence) -> socket.socket:
    """On rank 0: a socket that listens for the process group's store, at an address that all ranks reach:
    the one by which presence was reached, a loopback address where all ranks are on one machine.
    """
    addresses = _reached(presence)
    if len(addresses) == 1:
        return socket.create_server(
            (addresses[0], 0), family=family(addresses[0]), backlog=max(128, presence.world)
        )
    return listen_everywhere(0, presence.world)


def begin(presence: Presence, port: int) -> tuple[str, str]:
    """On rank 0, with the store's port: let the others begin. Return (address, network interface).

    Where the ranks are on several machines, a line says which interface carries their collectives.
    """
    address = _reached(presence)[0]
    interface = interface_of(address)
    presence.begin({"address": address, "port": port, "interface": interface})
    machines = {(hello["net"], hello["host"]) for hello in presence.arrivals.hellos.values()}
    if not is_loopback(address):
        write_line(
            f"{presence.world} ranks on {len(machines)} machines; rank 0 is on {presence.host}, reached over "
            f"{interface or 'an unknown interface'} ({address})"
        )
    return address, interface


def await_beginning(presence: Presence, *, patience_seconds: float) -> tuple[str, int, str]:
    """On another rank: wait for rank 0's word. Return the store's address and port, and the network
    interface.

    ValueError as `gather` on rank 0. RuntimeError where rank 0 says nothing for longer than it may wait
    itself.
    """
    try:
        told = presence.beginning.get(timeout=patience_seconds + SILENT_SECONDS)
    except queue.Empty:
        raise RuntimeError(
            f"rank {presence.rank} has had no word of rank 0 on {presence.host_of(0)} within "
            f"{patience_seconds:g} s: it has not met all other ranks"
        ) from None
    if "error" in told:
        raise ValueError(told["error"])
    if presence.arrivals.hellos[0]["net"] == presence.net:
        return str(told["address"]), int(told["port"]), str(told["interface"])
    own, other = presence.way
    return other, int(told["port"]), interface_of(own)


def hosts_of(environ: Mapping[str, str], *, by_srun: bool) -> Callable[[int], str]:
    """The function rank → its machine, of SLURM's node list; elsewhere no machine is known."""
    return lambda rank: slurm.host_of(rank, environ) if by_srun else ""


def _reached(presence: Presence) -> list[str]:
    """The addresses of rank 0's machine by which the other machines reached it, the most usual first."""
    counts = Counter(
        plain(str(hello["reached"]))
        for hello in presence.arrivals.hellos.values()
        if hello["net"] != presence.net
    )
    return [address for address, _ in counts.most_common()] or [LOOPBACK]


def _absent(presence: Presence, hosts: Callable[[int], str]) -> str:
    absent = presence.arrivals.missing()
    return missing(absent, {rank: hosts(rank) for rank in absent[:8]}, presence.world)
