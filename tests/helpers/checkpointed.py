"""Ranks that save and resume through one folder, without a model: what the tests of checkpoints share."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from parallel.engine import Chunk
from trainer.checkpoint import folder as folders
from trainer.checkpoint.manager import Checkpointer
from trainer.ranks import Ranks
from trainer.record.events import EventLog
from trainer.state import Identity, TrainState

ROWS = 12


class FakeEngine:
    """Rank `rank` of `world` holds its rows of two tensors, and all of a replicated one that rank 0 owns."""

    def __init__(self, rank: int = 0, world: int = 1, value: float = 0.0) -> None:
        self.rows = slice(ROWS * rank // world, ROWS * (rank + 1) // world)
        size = self.rows.stop - self.rows.start
        self.sharded = {name: torch.full((size, 5), value) for name in ("model.w", "optim.exp_avg.w")}
        self.norm = torch.full((7,), value)
        self.rank = rank
        self.updates = 0

    def chunks(self) -> list[Chunk]:
        sharded = [
            Chunk(name, tensor, (ROWS, 5), (self.rows.start, 0), True)
            for name, tensor in self.sharded.items()
        ]
        return [*sharded, Chunk("model.norm", self.norm, (7,), (0,), self.rank == 0)]

    def scalars(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load(self, scalars: dict[str, Any]) -> None:
        self.updates = scalars["updates"]

    def set(self, value: float) -> None:
        for tensor in (*self.sharded.values(), self.norm):
            tensor.fill_(value)
        self.updates = int(value)

    def holds(self, value: float) -> bool:
        tensors = (*self.sharded.values(), self.norm)
        return self.updates == int(value) and all(bool((tensor == value).all()) for tensor in tensors)


class ByGather:
    """All that ranks tell one another, by one gather."""

    def __init__(self, gather: Callable[[Any], list[Any]]) -> None:
        self.gather = gather

    def answer(self, value: Any, answers: Callable[[list[Any]], Sequence[Any]]) -> Any:
        raise NotImplementedError("of real processes")

    def tell(self, value: Any, rank: int) -> Any:
        return self.gather(value)[rank]

    def least(self, number: int) -> int:
        return int(min(self.gather(number)))

    def sum(self, number: int) -> int:
        return sum(self.gather(number))


class Team:
    """`world` ranks as threads of this process, with a gather among them."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._barrier = threading.Barrier(world, timeout=20)
        self._slots: list[Any] = [None] * world

    def ranks(self, rank: int) -> Ranks:
        return Ranks(rank, self.world, ByGather(self.gather(rank)))

    def gather(self, rank: int) -> Callable[[Any], list[Any]]:
        def collect(value: Any) -> list[Any]:
            self._slots[rank] = json.loads(json.dumps(value))
            self._barrier.wait()
            out = list(self._slots)
            self._barrier.wait()
            return out

        return collect

    def run(self, action: Callable[[int], Any]) -> list[Any]:
        """Each rank's result, or the exception it raised."""

        def guarded(rank: int) -> Any:
            try:
                return action(rank)
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(guarded, range(self.world)))


def make(
    run_dir: Path, rank: int = 0, team: Team | None = None, identity: Identity | None = None, **options: Any
) -> Checkpointer:
    ranks = team.ranks(rank) if team else Ranks()
    settings: dict[str, Any] = {"every": 1, "keep": 0, "asynchronous": False, "patience_seconds": 20}
    settings["identity"] = lambda position: identity or Identity()
    events = EventLog(run_dir / "events.jsonl" if rank == 0 else None)
    return Checkpointer(run_dir, **{**settings, "events": events, "ranks": ranks, **options})


def save(checkpointer: Checkpointer, engine: FakeEngine, step: int, **options: Any) -> None:
    engine.set(step)
    checkpointer.save(TrainState(step, 8 * step, 64 * step), engine, **options)
    if not checkpointer.asynchronous:
        checkpointer.settle()


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def tensors_of(run_dir: Path, step: int) -> Path:
    return folders.step_folder(run_dir / "checkpoints", step) / "rank-00000.safetensors"
