"""Which ranks have come, and what each said of itself; the end of a rank. Imports no torch."""

import threading
from dataclasses import dataclass, field

from parallel.world.wire import Connection, Message


@dataclass(frozen=True)
class Departure:
    """The end of a rank.

    rank: which one.
    code: its exit code; None where it died without sending one.
    why: the reason that it sent.
    agreed: all ranks were to leave together, so that no rank has to act on this one's end.
    host: the name of its machine.
    out_of_reach: its machine or the link to it is lost, as far as this rank can tell; else its process ended.
    """

    rank: int
    code: int | None = None
    why: str = ""
    agreed: bool = False
    host: str = field(default="", compare=False)
    out_of_reach: bool = False

    def __str__(self) -> str:
        on = f" on {self.host}" if self.host else ""
        if self.code is None:
            if self.out_of_reach:
                return f"rank {self.rank}{on} is out of reach: was its machine lost, or the link to it cut?"
            return f"rank {self.rank}{on} is gone without a word: was it killed?"
        return f"rank {self.rank}{on}: {self.why or f'left with exit code {self.code}'}"


class Arrivals:
    """On rank 0: who has come, of `world` ranks with this `key`.

    hellos: rank → what it said, rank 0's own included: rank, world, key, host, net, device, gpu; and
        `reached`, the address of this machine by which it came.
    refused: why ranks were turned away that do not belong to this world; empty where none was.
    settled: nobody is missing, or somebody was refused.
    """

    def __init__(self, world: int, own: Message) -> None:
        self.world = world
        self.key = str(own["key"])
        self.hellos: dict[int, Message] = {0: own}
        self.refused = ""
        self.settled = threading.Event()
        self._turned_away: set[int] = set()
        self._lock = threading.Lock()
        self._check()

    def greet(self, peer: Connection, message: Message) -> None:
        """Answer a rank that says hello. It has come once it has confirmed that it has the answer: until
        then it may have turned elsewhere. ValueError where it has no business here.
        """
        if message["key"] != self.key:
            raise ValueError("of another start")
        rank = int(message["rank"])
        if self.refused or message["world"] != self.world or not 0 < rank < self.world:
            self._refuse(peer, rank, int(message["world"]))
        with self._lock:
            if rank in self.hellos:
                peer.send({"taken": rank})
                raise ValueError(
                    "of a later start: its own rank 0 is not there yet; or one rank started twice"
                )
        peer.rank, peer.about = rank, message
        peer.send({"rank": 0, **{name: self.hellos[0][name] for name in ("key", "host", "net")}})

    def check(self, peer: Connection) -> None:
        """ValueError where a rank that confirms has come already: there are two of it."""
        if peer.rank in self.hellos:
            raise ValueError("there are two of this rank")

    def admit(self, peer: Connection) -> None:
        """A rank has confirmed."""
        with self._lock:
            self.hellos[peer.rank] = {**peer.about, "reached": peer.socket.getsockname()[0]}
        self._check()

    @property
    def complete(self) -> bool:
        """Whether every rank has come."""
        return len(self.hellos) == self.world

    def missing(self) -> list[int]:
        """The ranks that have neither come nor been refused."""
        with self._lock:
            return sorted(set(range(self.world)) - self.hellos.keys() - self._turned_away)

    def _refuse(self, peer: Connection, rank: int, world: int) -> None:
        why = (
            f"rank {rank} was started as one of {world} ranks, rank 0 as one of {self.world}: start every "
            "rank with the same number (WORLD_SIZE)"
        )
        with self._lock:
            self._turned_away.add(rank)
            self.refused = self.refused or why
        peer.send({"refused": self.refused})
        self.settled.set()
        raise ValueError(why)

    def _check(self) -> None:
        if self.complete:
            self.settled.set()
