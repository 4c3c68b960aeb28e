"""What ranks tell each other of a hang, beside the collectives: questions of rank 0, and each rank's answers.

where    → where this rank is (`whereabouts.Whereabouts`)
stacks   of some ranks → the stacks of this one, if it is among them
state    of processes by host → why those on this host may not answer
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from trainer.watch.phases import Bounds, Phases
from trainer.watch.whereabouts import Whereabouts, look, state_of_process, this_process

ANSWER_SECONDS = 10.0  # a rank that has not answered by then is taken for stopped
SECOND_ANSWER_SECONDS = 5.0  # for later questions, which stopped ranks would hold up again

_WHERE, _STACKS, _STATE, _HERE = (f"hang/{kind}" for kind in ("where", "stacks", "state", "here"))


class Channel(Protocol):
    """Messages between ranks beside the collectives: `parallel.world.presence.Presence`."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def host(self) -> str: ...
    def host_of(self, rank: int) -> str: ...
    def handle(self, kind: str, handler: Callable[[int, Any], Any]) -> None: ...
    def send(self, kind: str, payload: Any = None) -> None: ...
    def broadcast(self, kind: str, payload: Any = None) -> None: ...
    def ask(
        self, kind: str, payload: Any = None, *, seconds: float, ranks: Collection[int] | None = None
    ) -> dict[int, Any]: ...


class Messages:
    """Answers for this rank from its making on; asks all ranks where this is rank 0.

    asked_at: when rank 0 last asked where this rank is (`time.monotonic`); 0.0 before.
    """

    def __init__(self, channel: Channel, phases: Phases, bounds: Bounds) -> None:
        self._channel, self._phases, self._bounds = channel, phases, bounds
        self._processes: dict[int, int] = {}  # rank → process
        self.asked_at = 0.0
        channel.handle(_WHERE, self._answer_where)
        channel.handle(_STACKS, self._answer_stacks)
        channel.handle(_STATE, self._answer_state)
        channel.handle(_HERE, self._note_process)

    def introduce(self) -> None:
        """Tell rank 0 which process this is; rank 0 tells all."""
        tell = self._channel.broadcast if self._channel.rank == 0 else self._channel.send
        tell(_HERE, this_process())

    def here(self) -> tuple[Whereabouts, str]:
        """Where this rank is, and its stacks."""
        return look(self._phases, self._bounds, rank=self._channel.rank, host=self._channel.host)

    def where(self) -> list[Whereabouts]:
        """On rank 0: ask all ranks where they are. Those that do not answer are absent."""
        answers = self._channel.ask(_WHERE, seconds=ANSWER_SECONDS)
        return [Whereabouts.from_json(answer) for answer in answers.values()]

    def stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        """On rank 0: rank → its stacks, of these ranks."""
        answers = self._channel.ask(_STACKS, list(ranks), seconds=SECOND_ANSWER_SECONDS, ranks=ranks)
        return {rank: str(text) for rank, text in answers.items() if text is not None}

    def states(self, silent: set[int]) -> dict[int, str]:
        """On rank 0: rank → why it does not answer, as another on its machine sees it; "" where none does.

        One rank of each machine is asked.
        """
        states = dict.fromkeys(sorted(silent), "")
        processes: dict[str, dict[int, int]] = {}
        for rank in silent & self._processes.keys():
            processes.setdefault(self._channel.host_of(rank), {})[rank] = self._processes[rank]
        seeing: dict[str, int] = {}  # machine → the first rank there that answers
        for rank in range(self._channel.world) if processes else ():
            if rank not in silent and (host := self._channel.host_of(rank)) in processes:
                seeing.setdefault(host, rank)
        if not seeing:
            return states
        asked = {host: processes[host] for host in seeing}
        ranks = set(seeing.values())
        answers = self._channel.ask(_STATE, asked, seconds=SECOND_ANSWER_SECONDS, ranks=ranks)
        for seen in answers.values():
            states |= {int(rank): state for rank, state in seen.items()}
        return states

    def state_of_rank_0(self) -> str:
        """Why rank 0 does not answer, where it is on this machine; else ""."""
        is_here = self._channel.host_of(0) == self._channel.host
        return state_of_process(self._processes[0]) if is_here and 0 in self._processes else ""

    def _answer_where(self, sender: int, payload: Any) -> dict[str, Any]:
        self.asked_at = time.monotonic()
        return self.here()[0].to_json()

    def _answer_stacks(self, sender: int, ranks: Sequence[int]) -> str | None:
        return self.here()[1] if self._channel.rank in ranks else None

    def _answer_state(self, sender: int, processes: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
        here = processes.get(self._channel.host, {})
        return {str(rank): state_of_process(process) for rank, process in here.items()}

    def _note_process(self, sender: int, process: int) -> None:
        self._processes[sender] = process
