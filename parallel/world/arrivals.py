"""Which ranks have come, and what each said of itself; the end of a rank. Imports no torch."""

import threading
from dataclasses import dataclass, field

from parallel.world.wire import PROTOCOL, Connection, Message

MOST_RANKS = 1 << 24


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


class Elsewhere(ValueError):
    """A rank has come that does not belong here: it knows that, and looks for its rank 0 elsewhere."""


class Arrivals:
    """On rank 0: who has come, of `world` ranks with this `key`.

    hellos: rank → what it said, rank 0's own included: rank, world, key, host, net, device, gpu; and
        `reached`, the address of this machine by which it came.
    refused: why ranks were turned away that do not belong to this world; empty where none was.
    settled: nobody is missing, or somebody was refused.
    nobody_missing: every rank has come or been refused.
    """

    def __init__(self, world: int, own: Message) -> None:
        self.world = world
        self.key = str(own["key"])
        self.hellos: dict[int, Message] = {0: own}
        self.refused = ""
        self.settled = threading.Event()
        self.nobody_missing = threading.Event()
        self._turned_away: set[int] = set()
        self._lock = threading.Lock()
        self._check()

    def greet(self, peer: Connection, message: Message) -> None:
        """Answer a rank that says hello. It has come once it has confirmed that it has the answer: until
        then it may have turned elsewhere. `Elsewhere` where it has no business here; ValueError where the
        message is no rank's.
        """
        self._check_version(peer, message)
        rank, world = (_whole_number(message.get(name)) for name in ("rank", "world"))
        words = [message.get(name) for name in ("key", "host", "net", "device", "gpu")]
        if not all(isinstance(word, str) for word in words):
            raise ValueError("a hello that does not say where the rank is")
        if message["key"] != self.key:
            raise Elsewhere("of another start")
        if self.refused or world != self.world or not 0 < rank < self.world:
            self._refuse(peer, rank, world)
        with self._lock:
            if rank in self.hellos:
                peer.send({"taken": rank})
                raise Elsewhere(
                    "of a later start: its own rank 0 is not there yet; or one rank started twice"
                )
        peer.rank, peer.about = rank, message
        known = {name: self.hellos[0][name] for name in ("key", "host", "net")}
        peer.send({"protocol": PROTOCOL, "rank": 0, **known})

    def check(self, peer: Connection) -> None:
        """`Elsewhere` where a rank that confirms has come already: there are two of it."""
        if peer.rank in self.hellos:
            raise Elsewhere("there are two of this rank")

    def admit(self, peer: Connection) -> None:
        """A rank has confirmed."""
        with self._lock:
            self.hellos[peer.rank] = {**peer.about, "reached": peer.socket.getsockname()[0]}
            self._turned_away.discard(peer.rank)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether every rank has come."""
        return len(self.hellos) == self.world

    def missing(self) -> list[int]:
        """The ranks that have neither come nor been refused."""
        with self._lock:
            return sorted(set(range(self.world)) - self.hellos.keys() - self._turned_away)

    def _check_version(self, peer: Connection, message: Message) -> None:
        """ValueError where the message is no rank's, or one's of another version of Germinal, which is told
        so.
        """
        found = message.get("protocol")
        if found == PROTOCOL:
            return
        if isinstance(found, str) and found.startswith("germinal/") and message.get("key") == self.key:
            why = "another version of Germinal than rank 0's: install the same on every machine"
            peer.send({"refused": why})
            raise ValueError(why)
        raise ValueError("it does not begin as a rank of Germinal does")

    def _refuse(self, peer: Connection, rank: int, world: int) -> None:
        why = (
            f"rank {rank} was started as one of {world} ranks, rank 0 as one of {self.world}: start every "
            "rank with the same number (WORLD_SIZE)"
        )
        with self._lock:
            if 0 < rank < self.world and rank not in self.hellos:
                self._turned_away.add(rank)
            self.refused = self.refused or why
        peer.send({"refused": self.refused})
        self.settled.set()
        self._check()
        raise Elsewhere(why)

    def _check(self) -> None:
        if self.complete:
            self.settled.set()
        if len(self.hellos) + len(self._turned_away) == self.world:
            self.nobody_missing.set()


def _whole_number(found: object) -> int:
    """A rank or a number of ranks. ValueError where it is none, such as `true`, which Python takes for 1, or
    1e999.
    """
    if type(found) is not int or not 0 <= found < MOST_RANKS:
        raise ValueError("a hello without a rank and a number of ranks")
    return found
