"""Messages that a rank of a pipeline has sent, kept until the other rank has received them and no longer.

The memory of a message must stay until its send has ended. torch's schedules with several stages a rank wait
for their sends after the last micro-batch, so every hidden state and every gradient between two ranks would
stay for the whole step. Waiting right after each send would deadlock ranks that send to each other. From the
schedule one can tell when a wait is safe: once a message has arrived that the receiver sent after it had
posted its receive.

    rank 0   send x ------------------------ receive y: now x has a receiver, and waiting for its send is safe
    rank 1             receive x ... send y
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist

from parallel.relied_on import borrow

_batch_p2p = borrow("torch", "torch.distributed.pipelining.schedules", "_batch_p2p")


class Pass(NamedTuple):
    """A stage's forward or backward of one micro-batch.

    Its message is the hidden state for the next stage, or the gradient for the previous one.
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
    """Rank → pass → the passes of that rank whose messages have a posted receive when the pass begins.

    order: rank → the actions of one step as torch's schedules list them, sends and receives included. A pass
        begins when the message that it needs has arrived.
    """
    actions = {rank: list(_flat(listed)) for rank, listed in order.items()}
    receivers: dict[Pass, tuple[int, int]] = {}  # message → (its receiver, number of the receive)
    for rank, mine in actions.items():
        for number, (kind, done) in enumerate(mine):
            if kind in RECEIVES:
                receivers[done.source()] = rank, number
    # Rank → how many actions of every rank are known there to be over. A message carries its sender's.
    over = {rank: dict.fromkeys(actions, 0) for rank in actions}
    sent_with: dict[Pass, dict[int, int]] = {}
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
                over[rank][rank] = nexts[rank]
                if kind in SENDS:
                    sent_with[done] = dict(over[rank])
                    under_way[rank][receivers[done][0]].append(done)
                elif kind in PASSES and receivers.get(done.source(), (None,))[0] == rank:
                    if done.source() not in sent_with:
                        break
                    carried = sent_with.pop(done.source())
                    over[rank] = {other: max(n, carried[other]) for other, n in over[rank].items()}
                    for other, sent in under_way[rank].items():
                        while sent and over[rank][other] > receivers[sent[0]][1]:
                            found[rank].setdefault(done, []).append(sent.popleft())
                nexts[rank] += 1
        assert sum(nexts.values()) > before, "a schedule whose ranks wait for one another"
    return found


def _flat(actions: Iterable[Any]) -> Iterator[tuple[str, Pass]]:
    """(kind, pass) of every action; overlapped actions one after the other."""
    for action in actions:
        if action.sub_actions is not None:
            yield from _flat(action.sub_actions)
        elif (kind := action.computation_type.name) in RECEIVES | SENDS | PASSES:
            backward = (RECEIVES | SENDS | PASSES)[kind]
            yield kind, Pass(backward, action.stage_index, action.microbatch_index)


class Sends:
    """The sends of a rank's stages in one step."""

    def __init__(self, arrived: Mapping[Pass, Sequence[Pass]]) -> None:
        """arrived: this rank's entry of `arrivals`."""
        self._arrived = arrived
        self._works: dict[Pass, list[Any]] = {}

    def start(self, sent: Pass, operations: Sequence[dist.P2POp]) -> None:
        """Send the message of `sent`. The works hold its memory."""
        self._works[sent] = _batch_p2p(list(operations))  # as torch's schedules post their receives

    def release(self, begun: Pass) -> None:
        """Drop the messages that have a posted receive when `begun` begins."""
        for sent in self._arrived.get(begun, ()):
            self._wait(sent)

    def finish(self) -> None:
        """Wait for the sends that are under way after the last pass."""
        for sent in list(self._works):
            self._wait(sent)

    def _wait(self, sent: Pass) -> None:
        for work in self._works.pop(sent):
            work.wait()
