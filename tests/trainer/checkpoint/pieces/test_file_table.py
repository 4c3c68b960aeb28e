"""The table of all ranks' files: damage is found by the rank that reads it; only rank 0 reads all of it."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpointed import FakeEngine, Team, events, make, save
from parallel.engine import Chunk
from stored import write
from trainer.checkpoint import folder as folders
from trainer.checkpoint import store
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.pieces.files import TABLE, DamagedError, FileEntry, Listed
from trainer.state import TrainState


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three ranks' files of one checkpoint: 1, 3 and 2."""
    monkeypatch.setattr(store, "FILE_BYTES", 64)
    sizes = (1, 3, 2)
    names = [[f"{rank}.{number}" for number in range(count)] for rank, count in enumerate(sizes)]
    return write(
        tmp_path, [[Chunk(name, torch.ones(16), (16,), (0,), True) for name in mine] for mine in names]
    )


def test_a_row_is_as_long_for_ranks_that_wrote_less(saved: Path) -> None:
    rows = (saved / TABLE).read_text().splitlines()
    assert len(rows) == 9 and len({len(row) for row in rows}) == 1
    missing = [row.split()[0] for row in rows if row.split()[1] == "-"]
    assert missing == [f"rank-{name}.safetensors" for name in ("00000-1", "00000-2", "00002-2")]
    files = read_manifest(saved).files
    assert [len(files.of_rank(rank)) for rank in range(-1, 5)] == [0, 1, 3, 2, 0, 0]
    assert sorted(files) == sorted({path.name for path in saved.iterdir()} - {"MANIFEST.json"})
    assert len(files) == 7 and files["rank-00001-2.safetensors"].bytes > 64


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 20])
def test_each_file_is_one_ranks_to_prove(saved: Path, ranks: int) -> None:
    files = read_manifest(saved).files
    for shift in (0, 1, ranks // 2):
        shares = [files.share_of(rank, ranks, shift=shift) for rank in range(ranks)]
        assert sorted(name for share in shares for name in share) == sorted(files)
        assert TABLE in shares[0], "only rank 0 reads all of it"
        assert max(len(set(share) - {TABLE}) for share in shares) <= -(-9 // ranks)
    entry = FileEntry(1, "")
    many = {f"rank-00000{k}.safetensors": entry for k in ("", *(f"-{n}" for n in range(1, 12)))}
    shares = [Listed(many).share_of(rank, 12) for rank in range(12)]
    assert [*map(len, shares)] == [1] * 12 and shares[10] == ["rank-00000-10.safetensors"]


def test_every_bit_of_a_row_counts_for_the_rank_that_reads_it(saved: Path) -> None:
    sound = (saved / TABLE).read_bytes()
    a_rank = len(sound) // 3
    for position in range(0, 8 * len(sound), 7):
        data = bytearray(sound)
        data[position // 8] ^= 1 << position % 8
        (saved / TABLE).write_bytes(data)
        files = read_manifest(saved).files
        for rank in range(3):
            if rank == position // 8 // a_rank:
                with pytest.raises(
                    DamagedError, match=rf"^{saved / TABLE}: damaged, .*rows of rank {rank} do"
                ):
                    files.of_rank(rank)
            else:
                assert files.of_rank(rank)
        with pytest.raises(DamagedError, match=TABLE):
            folders.check_file(saved, TABLE, files[TABLE])


def rows_swapped(table: Path) -> None:
    rows = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join([rows[1], rows[0], *rows[2:]]))


def of_another_step(table: Path) -> None:
    shutil.copy(table.parents[1] / "step-000000001" / TABLE, table)


def cut_short(table: Path) -> None:
    os.truncate(table, table.stat().st_size - 1)


def longer(table: Path) -> None:
    table.write_bytes(table.read_bytes() + b"\n")


def a_flipped_bit(table: Path) -> None:
    data = bytearray(table.read_bytes())
    data[-1] ^= 1
    table.write_bytes(data)


FAULTS = {
    rows_swapped: "damaged",
    of_another_step: "or of another checkpoint",
    cut_short: "cut short or replaced",
    longer: "cut short or replaced",
    a_flipped_bit: "damaged",
    Path.unlink: "missing",
}


@pytest.mark.parametrize("spoil", [cut_short, longer, Path.unlink])
def test_a_table_of_another_size_is_found_by_a_rank_of_any_rows(
    saved: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(saved / TABLE)
    for rank in range(3):
        with pytest.raises(DamagedError, match=FAULTS[spoil]):
            read_manifest(saved).files.of_rank(rank)


@pytest.mark.parametrize("spoil", FAULTS)
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_goes_on_from_the_older_checkpoint(
    tmp_path: Path, spoil: Callable[[Path], None], after: int
) -> None:
    team = Team(3)

    def train(rank: int) -> None:
        checkpointer, engine = make(tmp_path, rank, team), FakeEngine(rank, 3)
        for step in (1, 2):
            save(checkpointer, engine, step)
        checkpointer.close()

    assert team.run(train) == [None] * 3
    at = folders.step_folder(tmp_path / "checkpoints", 2)
    spoil(at / TABLE)
    with pytest.raises(DamagedError, match=re.escape(str(at / TABLE))) as caught:
        folders.verify(at)
    assert FAULTS[spoil] in str(caught.value) and "\n" not in str(caught.value)
    team = Team(after)

    def resume(rank: int) -> Any:
        engine = FakeEngine(rank, after)
        return make(tmp_path, rank, team).resume(engine), engine.holds(1)

    assert team.run(resume) == [(TrainState(1, 8, 64), True)] * after
    (told,) = events(tmp_path, "fault")
    assert TABLE in told["reason"] and FAULTS[spoil] in told["reason"] and "\n" not in told["reason"]
