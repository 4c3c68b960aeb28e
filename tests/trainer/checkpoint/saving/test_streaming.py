"""State that is on a disk goes to a checkpoint batch by batch: no more than a batch of it is ever held."""

import errno
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpointed import FakeEngine, events, make, save
from parallel.engine import Chunk
from trainer.checkpoint import folder as folders
from trainer.checkpoint import store
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.saving.staging import Staging
from trainer.state import TrainState

BATCHES, ROWS = 5, 4


class OnDisk(FakeEngine):
    """Besides what a FakeEngine has, a tensor whose rows are read in batches, as DeepSpeed swaps state."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.disk = torch.full((BATCHES * ROWS, 3), value)
        self.held: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    def chunks(self) -> list[Chunk]:
        return [*super().chunks(), Chunk("model.disk", self.disk, (BATCHES * ROWS, 3), (0, 0), True)]

    def batches(self) -> Iterator[list[Chunk]]:
        yield super().chunks()
        for first in range(0, BATCHES * ROWS, ROWS):
            read = self.disk[first : first + ROWS].clone()
            self.held.append(weakref.ref(read))
            self.most = max(self.most, sum(one() is not None for one in self.held))
            yield [Chunk("model.disk", read, (BATCHES * ROWS, 3), (first, 0), True)]
            del read

    def set(self, value: float) -> None:
        super().set(value)
        self.disk.copy_(torch.arange(BATCHES * ROWS * 3.0).view(-1, 3) + value)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batch_at_a_time_is_held_and_every_value_is_saved(
    tmp_path: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Staging, "copy", lambda *given: pytest.fail("the state was copied into memory"))
    checkpointer, engine = make(tmp_path, asynchronous=asynchronous), OnDisk()
    save(checkpointer, engine, 1)
    at = folders.step_folder(checkpointer.root, 1)
    assert at.exists(), "training goes on when the state has been read, not before"
    assert engine.most == 1
    assert len(read_manifest(at).files) == 1 + 1 + 1 + BATCHES
    engine.set(2)
    checkpointer.close()
    resumed = OnDisk()
    assert make(tmp_path).resume(resumed) == TrainState(1, 8, 64)
    assert torch.equal(resumed.disk, engine.disk - 1) and resumed.holds(1)


def test_another_attempt_reads_all_batches_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all, failed = store.write_all, []

    def write(fd: int, data: Any) -> None:
        if "00000-3" in os.readlink(f"/proc/self/fd/{fd}") and not failed:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write_all(fd, data)

    monkeypatch.setattr(store, "write_all", write)
    checkpointer, engine = make(tmp_path), OnDisk()
    save(checkpointer, engine, 1)
    checkpointer.close()
    assert failed and len(engine.held) > BATCHES
    assert "trying again (1 of 2)" in events(tmp_path, "fault")[0]["reason"]
    whole = store.read_tensor(folders.step_folder(checkpointer.root, 1), "model.disk")
    assert torch.equal(whole, engine.disk)
