"""The ranks' own line to each other, beside the collectives: who is still there, and messages.

Every rank keeps one connection to rank 0, under every launcher. It carries two things.

**Departures.** Ranks wait for each other: at the rendezvous, in a collective, at the commit of a save. If one
rank ends without the others, they would wait until a time-out of minutes. A connection is closed with its
process, however the process dies, and `wire` finds a machine or a link that is lost. A rank that ends in
order sends its exit code first. Rank 0 forwards what it learns, and every rank then ends too:

    rank 2          rank 0          rank 1
      | killed
      x - closed - - >|
                      | Departure(2) - >|
                      | on_departure    | on_departure, in a thread of its own

There is no heartbeat, so a rank that is busy, or stopped in a debugger, is never taken for dead. Under
`germinal train` the supervisor is the parent of all ranks and ends them; presence then carries messages only.

**Messages**, of a kind and with a payload that JSON can hold:

    presence.handle("phase", lambda sender, payload: …)       on the ranks that receive this kind
    presence.send("phase", {"step": 7})                       any rank → rank 0
    presence.broadcast("hang", {"report": "…"})               rank 0 → every rank
    presence.ask("stacks", seconds=5.0)                       rank 0 → every rank: {rank: what `handle`'s
                                                              function returned there}; another rank → rank 0

Register before the ranks meet (`Runtime.join`): a message of a kind without a handler is dropped. Handlers of
`send` and `broadcast` run one after another in a thread for them alone. A question is answered in a thread of
its own, so a rank whose main thread waits in a collective answers; one that is stopped, or whose main thread
holds the interpreter, does not, and is missing in the answers. A single process sends to itself.

**Cost.** Rank 0 holds world - 1 connections and serves all of them in one thread. `broadcast` and `ask` are a
message to each rank (and one back), written by rank 0 alone: b bytes a message are b × world on its link, and
so are all answers together in its memory. `send` is one message. However many ranks leave, each other rank is
told of one, the first that left without the others: world messages, not world². Messages are for what is
rare, such as a hang; what a rank says in every step belongs into the step's reduction. Imports no torch.
"""

import contextlib
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from common.standard_error import write_line
from parallel.world.addresses import network, plain
from parallel.world.arrivals import Arrivals, Departure, Elsewhere
from parallel.world.entrance import Entrance
from parallel.world.inbox import Handler, Inbox
from parallel.world.wire import Connection, Message, line

# How long a rank 0 that leaves alone waits for ranks that have not connected yet, to tell them.
LATE_SECONDS = 60.0
# Machines of which a line says that what connected from there is no rank.
MOST_STRANGERS = 8


class Presence:
    """This rank among `world`. `on_departure` is called in a thread of its own for a rank that leaves.

    host, net: this machine's name, and its network (see `addresses.network`).
    arrivals: on rank 0: which ranks have come; on another rank: rank 0.
    way: on another rank: the addresses of its connection to rank 0, here and there.
    beginning: on another rank: rank 0's word that all have come, or why they cannot begin; see `meeting`.
    """

    def __init__(self, rank: int, world: int, on_departure: Callable[[Departure], None]) -> None:
        self.rank = rank
        self.world = world
        self.host = socket.gethostname()
        self.net = network()
        self.arrivals = Arrivals(world, {"key": "", "host": self.host, "net": self.net})
        self.way = ("", "")
        self.beginning: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._begun: Message = {}
        self._on_left = on_departure
        self._lock = threading.Lock()
        self._peers: dict[int, Connection] = {}  # rank 0: of each other rank; else rank 0's
        self._gone: dict[int, Departure] = {}
        self._strangers: set[str] = set()  # addresses
        self._inbox = Inbox()
        self._wakeup, self._wake = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wake.setblocking(False)

    def listen(self, server: socket.socket, about: Message) -> None:
        """On rank 0: let other ranks connect to `server` until all have come. about: `key`, and rank 0."""
        self.arrivals = Arrivals(self.world, {**about, "rank": 0, "host": self.host, "net": self.net})
        threading.Thread(target=self._serve, args=(server,), name="presence", daemon=True).start()

    def connected(self, rank_0: Connection) -> None:
        """On another rank: `rank_0` is the connection to rank 0 (see `meeting.find`)."""
        self.arrivals = Arrivals(self.world, rank_0.about)
        self.way = (plain(rank_0.socket.getsockname()[0]), plain(rank_0.socket.getpeername()[0]))
        self._peers[0] = rank_0
        threading.Thread(target=self._serve, args=(None, rank_0), name="presence", daemon=True).start()

    def begin(self, beginning: Message) -> None:
        """On rank 0: give every other rank its `beginning`."""
        self._begun = {"begin": beginning}
        self._post(self.present, self._begun)

    # Messages

    def handle(self, kind: str, handler: Handler) -> None:
        """Call `handler(sender, payload)` for each message of this kind; its result answers a question."""
        self._inbox.handle(kind, handler)

    def send(self, kind: str, payload: Any = None) -> None:
        """Send a message to rank 0; rank 0 sends it to itself. Does not wait."""
        if self.rank == 0:
            self._inbox.put(kind, 0, payload)
        else:
            self._post((0,), {"kind": kind, "payload": payload})

    def broadcast(self, kind: str, payload: Any = None) -> None:
        """On rank 0: send a message to every rank that is there, rank 0 included. Does not wait."""
        assert self.rank == 0, "only rank 0 is connected with all"
        self._post(self.present, {"kind": kind, "payload": payload})
        self._inbox.put(kind, 0, payload)

    def ask(
        self, kind: str, payload: Any = None, *, seconds: float, ranks: Collection[int] | None = None
    ) -> dict[int, Any]:
        """Ask every rank, or those of `ranks`, on rank 0; ask rank 0, on another rank. Return the answers
        that come within `seconds`, by rank. A rank that does not answer, or has no handler for this kind, is
        absent.
        """
        others = tuple(rank for rank in self.present if ranks is None or rank in ranks)
        own = (0,) if self.rank == 0 and (ranks is None or 0 in ranks) else ()

        def put(number: int) -> None:
            question = {"ask": number, "kind": kind, "payload": payload}
            self._post(others, question)
            if own:
                self._inbox.answer(0, question, lambda found: self._inbox.settle(number, 0, found))

        return self._inbox.ask((*own, *others), put, seconds)

    @property
    def present(self) -> tuple[int, ...]:
        """The ranks that this one is connected with: on rank 0 all others that are there, else rank 0."""
        with self._lock:
            return tuple(sorted(self._peers))

    def host_of(self, rank: int) -> str:
        """The name of a rank's machine; empty where it is not known: rank 0 knows all, others rank 0's."""
        known = self.arrivals.hellos.get(rank, {})
        return self.host if rank == self.rank else str(known.get("host", ""))

    # Departures

    def leave(self, code: int, why: str, *, agreed: bool, awaits_late: bool = True) -> None:
        """Tell the other ranks; where rank 0 leaves alone and `awaits_late`, those that connect later too."""
        left = Departure(self.rank, code, why, agreed, self.host)
        self._note(left)
        self._post(self.present, {"departure": vars(left)})
        if self.rank == 0 and not agreed and awaits_late:
            self.arrivals.nobody_missing.wait(LATE_SECONDS)

    def first_departure(self, patience_seconds: float) -> Departure | None:
        """The first rank that left without the others; None if none is known within `patience_seconds`."""
        by = time.monotonic() + patience_seconds
        while True:
            with self._lock:
                found = [left for left in self._gone.values() if not left.agreed and left.rank != self.rank]
            if found or time.monotonic() >= by:
                return found[0] if found else None
            time.sleep(0.02)

    def _note(self, left: Departure) -> bool:
        """Note a departure. Return whether it is the first of a rank that leaves without the others."""
        self._inbox.expect_no_more_of(left.rank)
        with self._lock:
            known = left.rank in self._gone
            first = not left.agreed and all(other.agreed for other in self._gone.values())
            self._gone.setdefault(left.rank, left)
        return first and not known

    def _depart(self, left: Departure) -> None:
        """Note what was learnt of another rank's end, and act on it: once, since one is enough to end all."""
        if not self._note(left):
            return
        if self.rank == 0:
            self._post(self.present, {"departure": vars(left)})
        threading.Thread(target=self._on_left, args=(left,), daemon=True).start()

    # The thread that serves the connections

    def _post(self, ranks: Collection[int], message: Message) -> None:
        with self._lock:
            peers = [self._peers[rank] for rank in ranks if rank in self._peers]
        sent = line(message)  # once, not for each of thousands of ranks
        full = [peer for peer in peers if not peer.send(sent)]
        if full:
            with contextlib.suppress(BlockingIOError):
                self._wake.send(b".")  # let the serving thread wait for room

    def _serve(self, server: socket.socket | None, *peers: Connection) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._wakeup, selectors.EVENT_READ)
        entrance = Entrance(server, selector, self.host, self.world) if server is not None else None
        for member in peers:
            selector.register(member.socket, selectors.EVENT_READ, member)
        while True:
            if entrance is not None and self.arrivals.complete:
                entrance.close()  # nobody is to come any more
                entrance = None
            for key, events in selector.select(entrance.pause_seconds() if entrance else None):
                peer: Connection = key.data
                if key.fileobj is self._wakeup:
                    self._wait_for_room(selector)
                elif entrance is not None and key.fileobj is entrance.server:
                    entrance.let_in()
                elif events & selectors.EVENT_WRITE and peer.flush():
                    selector.modify(peer.socket, selectors.EVENT_READ, peer)
                elif events & selectors.EVENT_READ and not self._receive(peer):
                    selector.unregister(peer.socket)
                    peer.close()
                    self._disconnected(peer)

    def _disconnected(self, peer: Connection) -> None:
        with self._lock:
            if self._peers.get(peer.rank) is not peer:  # it has not been admitted
                return
            del self._peers[peer.rank]
        self._depart(Departure(peer.rank, host=peer.host, out_of_reach=peer.timed_out))

    def _wait_for_room(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096)
        with self._lock:
            peers = list(self._peers.values())
        for peer in peers:
            if not peer.flush():
                selector.modify(peer.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)

    def _receive(self, peer: Connection) -> bool:
        """Act on what has come; return False where the other end is gone, or is none of our ranks."""
        try:
            messages, more = peer.receive()
            for message in messages:
                self._act(peer, message)
        except Elsewhere:
            return False
        except Exception as error:  # whatever it sent, this thread serves the other connections
            self._refuse(peer, error)
            return False
        return more

    def _refuse(self, peer: Connection, error: Exception) -> None:
        """Say whose connection is closed; of processes that are no ranks, one line for each machine."""
        if peer.is_member:
            who = f"rank {peer.rank} on {peer.host}"
            write_line(
                f"{who} sent what this rank cannot read ({type(error).__name__}: {error!s:.200}): closed"
            )
        elif peer.address not in self._strangers and len(self._strangers) < MOST_STRANGERS:
            self._strangers.add(peer.address)
            write_line(
                f"rank 0 on {self.host} closed a connection from {peer.address}, which is no rank's of this "
                f"run: {error!s:.200}"
            )

    def _act(self, peer: Connection, message: Message) -> None:
        if peer.rank < 0:
            self.arrivals.greet(peer, message)
        elif not peer.is_member:
            if "here" not in message:
                raise ValueError("a message before the rank has confirmed that it is here")
            self._admit(peer)
        elif "begin" in message:
            self.beginning.put(message["begin"])
        elif "departure" in message:
            self._depart(Departure(**message["departure"]))
        elif "ask" in message:
            self._inbox.answer(
                peer.rank,
                message,
                lambda found: self._post((peer.rank,), {"answer": message["ask"], "payload": found}),
            )
        elif "answer" in message:
            self._inbox.settle(message["answer"], peer.rank, message["payload"])
        else:
            self._inbox.put(message["kind"], peer.rank, message["payload"])

    def _admit(self, peer: Connection) -> None:
        self.arrivals.check(peer)
        with self._lock:
            self._peers[peer.rank] = peer
            first = next((left for left in self._gone.values() if not left.agreed), None)
        peer.is_member = True
        # One departure is enough to end a rank: many late ranks, after the end of many, are as many messages.
        for message in (self._begun, {"departure": vars(first)} if first else {}):
            if message:
                self._post((peer.rank,), message)
        self.arrivals.admit(peer)  # last: rank 0's main thread may begin, or end, now that all are told
