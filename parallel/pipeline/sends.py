"""What a rank of a pipeline has sent, kept until the other rank has received it and no longer.

Memory that is being sent belongs to the send until that has ended. torch's schedules with several stages a
rank wait for their sends after the last micro-batch, so every hidden state and every gradient between two
ranks would stay for the whole step. Waiting for each at once would stop ranks that send to each other. The
schedule says when a wait cannot: as soon as something has come back that the receiver sent after it had asked
for the message.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist

from parallel.relied_on import borrow

_batch_p2p = borrow("torch", "torch.distributed.pipelining.schedules", "_batch_p2p")


class Pass(NamedTuple):
    """A stage's forward or backward of one micro-batch. Its message is the hidden state, or gradient, that
    the next stage, or the previous one, goes on with.
    """

    backward: bool
    stage: int
    micro_batch: int

    def source(self) -> "Pass":
        """The pass whose message this one needs."""
        return self._replace(stage=self.stage + (1 if self.backward else -1))


RECEIVES = {"RECV_F": False, "RECV_B": True}
SENDS = {"SEND_F": False, "SEND_B": True}
PASSES = {"FORWARD": False, "FULL_BACKWARD": True, "BACKWARD_INPUT": True}


def arrivals(order: Mapping[int, Sequence[Any]]) -> dict[int, dict[Pass, list[Pass]]]:
    """By rank: pass → the passes whose messages this rank sent and which have a receiver when that begins.

    order: by rank, the actions of one step as torch's schedules list them, sends and receives included. A
    pass begins when the message that it needs is there.
    """
    actions = {rank: list(_flat(listed)) for rank, listed in order.items()}
    receivers: dict[Pass, tuple[int, int]] = {}  # message → the rank that asks for it, and at which action
    for rank, mine in actions.items():
        for number, (kind, done) in enumerate(mine):
            if kind in RECEIVES:
                receivers[done.source()] = rank, number
    # By rank, how many actions of every rank must be over by now; a message tells what its sender knew.
    known = {rank: dict.fromkeys(actions, 0) for rank in actions}
    told: dict[Pass, dict[int, int]] = {}
    under_way: dict[int, dict[int, deque[Pass]]] = {
        rank: {other: deque() for other in actions} for rank in actions
    }
    found: dict[int, dict[Pass, list[Pass]]] = {rank: {} for rank in actions}
    nexts = dict.fromkeys(actions, 0)
    while any(nexts[rank] < len(actions[rank]) for rank in actions):
        before = sum(nexts.values())
        for rank, mine in actions.items():
            while nexts[rank] < len(mine):
                kind, done = mine[nexts[rank]]
                known[rank][rank] = nexts[rank]
                if kind in SENDS:
                    told[done] = dict(known[rank])
                    under_way[rank][receivers[done][0]].append(done)
                elif kind in PASSES and receivers.get(done.source(), (None,))[0] == rank:
                    if done.source() not in told:
                        break
                    news = told.pop(done.source())
                    known[rank] = {other: max(n, news[other]) for other, n in known[rank].items()}
                    for other, sent in under_way[rank].items():
                        while sent and known[rank][other] > receivers[sent[0]][1]:
                            found[rank].setdefault(done, []).append(sent.popleft())
                nexts[rank] += 1
        assert sum(nexts.values()) > before, "a schedule whose ranks wait for one another"
    return found


def _flat(actions: Iterable[Any]) -> Iterator[tuple[str, Pass]]:
    """(kind, pass) of every action; of those that a schedule overlaps, one after the other."""
    for action in actions:
        if action.sub_actions is not None:
            yield from _flat(action.sub_actions)
        elif (kind := action.computation_type.name) in RECEIVES | SENDS | PASSES:
            backward = (RECEIVES | SENDS | PASSES)[kind]
            yield kind, Pass(backward, action.stage_index, action.microbatch_index)


class Sends:
    """The sends of a rank's stages in one step."""

    def __init__(self, arrived: Mapping[Pass, Sequence[Pass]]) -> None:
        """arrived: this rank's of `arrivals`."""
        self._arrived = arrived
        self._works: dict[Pass, list[Any]] = {}

    def start(self, sent: Pass, operations: Sequence[dist.P2POp]) -> None:
        """Send the message of `sent`. The works hold its memory."""
        self._works[sent] = _batch_p2p(list(operations))  # the way that the schedule's receives go

    def release(self, begun: Pass) -> None:
        """Let go of what has a receiver when `begun` begins."""
        for sent in self._arrived.get(begun, ()):
            self._wait(sent)

    def finish(self) -> None:
        """Wait for what is still under way after the last pass."""
        for sent in list(self._works):
            self._wait(sent)

    def _wait(self, sent: Pass) -> None:
        for work in self._works.pop(sent):
            work.wait()
