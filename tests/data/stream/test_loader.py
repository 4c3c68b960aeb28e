"""The loader: one list of sequences for every layout, wherever it begins or is moved to."""

from __future__ import annotations

import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, MixtureStage, Source
from data.stream import loader as loader_module
from data.stream.loader import Loader
from data.stream.stream import Stream
from made_corpus import make_corpus, numbered_documents, random_documents

GLOBAL_BATCH = 24
STEPS = 14
# (data ranks, micro-batch, prefetch, sequences located at once)
LAYOUTS = [
    (1, 24, 1, 1),
    (1, 1, 4, 1024),
    (1, 8, 2, 90),
    (2, 12, 1, 40),
    (2, 3, 4, 1024),
    (3, 4, 2, 1),
    (4, 6, 8, 50),
    (6, 2, 3, 1024),
    (8, 3, 1, 60),
    (24, 1, 4, 1024),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two corpora; the run passes an epoch of each and a change of weights."""
    folder = tmp_path_factory.mktemp("corpora")
    a = make_corpus(folder / "a", random_documents(60))
    b = make_corpus(folder / "b", random_documents(40, seed=1), shard_documents=7)
    return DataConfig(
        [Source(str(a), 0.7, "a"), Source(str(b), 0.3, "b")],
        seq_len=16,
        shuffle_blocks=3,
        document_mask=True,
        stages=[MixtureStage(7, {"b": 2.0})],
    )


def consumed(
    cfg: DataConfig, layout: tuple[int, int, int, int], start: int, steps: int
) -> list[tuple[int, int]]:
    """(sequence, crc) of a run with this layout, in the order of the global batch."""
    ranks, micro_batch, prefetch, _ = layout
    stream = Stream.open(cfg, seed=3, global_batch=GLOBAL_BATCH)
    found: list[list[tuple[int, int]]] = [[] for _ in range(steps)]
    for rank in range(ranks):
        loader = Loader(
            stream,
            rank=rank,
            ranks=ranks,
            global_batch=GLOBAL_BATCH,
            micro_batch=micro_batch,
            start=start,
            prefetch=prefetch,
        )
        for step, batches in zip(range(steps), loader):
            assert [batch.rows for batch in batches] == [micro_batch] * (GLOBAL_BATCH // ranks // micro_batch)
            for batch in batches:
                for row, sequence in enumerate(batch.sequences):
                    raw = b"".join(
                        batch.tensors[name][row].numpy().tobytes() for name in sorted(batch.tensors)
                    )
                    found[step].append((sequence, zlib.crc32(raw)))
        loader.close()
    return [pair for step in found for pair in step]


def test_one_order_for_every_layout_over_an_epoch_and_a_weight_change(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream.open(config, seed=3, global_batch=GLOBAL_BATCH)
    count = STEPS * GLOBAL_BATCH
    epochs = np.array(stream.mixture.counts(count)) / list(stream.sequences_per_epoch.values())
    assert (epochs > 1).all() and len(stream.mixture.segments) == 2
    lists = []
    for layout in LAYOUTS:
        monkeypatch.setattr(loader_module, "GULP_ROWS", layout[3])
        lists.append(consumed(config, layout, 0, STEPS))
    assert [sequence for sequence, _ in lists[0]] == list(range(count))
    assert all(found == lists[0] for found in lists)


def test_documents_and_their_partners_are_the_same_on_every_layout(config: DataConfig) -> None:
    cfg = replace(config, packing="one", partners=True, document_mask=False)
    first, *others = (consumed(cfg, layout, 0, STEPS) for layout in LAYOUTS[2:5])
    assert len(first) == STEPS * GLOBAL_BATCH and all(found == first for found in others)
    assert consumed(cfg, LAYOUTS[5], 5 * GLOBAL_BATCH, 2) == first[5 * GLOBAL_BATCH : 7 * GLOBAL_BATCH]


def test_rows_say_their_source_where_there_are_several(config: DataConfig) -> None:
    stream = Stream.open(config, seed=3, global_batch=GLOBAL_BATCH)
    loader = Loader(stream, rank=1, ranks=2, global_batch=GLOBAL_BATCH, micro_batch=3, start=GLOBAL_BATCH)
    for micro, _ in zip((batch for step in loader for batch in step), range(12)):
        expected, _ = stream.mixture.locate(np.array(micro.sequences))
        assert micro.tensors["source"].tolist() == expected.tolist()
    loader.close()
    alone = DataConfig(config.sources[:1], seq_len=config.seq_len)
    loader = Loader(
        Stream.open(alone, seed=3, global_batch=4), rank=0, ranks=1, global_batch=4, micro_batch=4
    )
    assert "source" not in next(loader)[0].tensors
    loader.close()


def test_a_run_resumed_on_other_layouts_consumes_each_sequence_once(config: DataConfig) -> None:
    whole = consumed(config, LAYOUTS[0], 0, 12)
    parts, start = [], 0
    for layout, steps in zip(LAYOUTS[1:], (1, 3, 2, 4, 2)):
        parts += consumed(config, layout, start, steps)
        start += steps * GLOBAL_BATCH
    assert parts == whole


def test_rows_that_do_not_divide_are_refused(config: DataConfig) -> None:
    stream = Stream.open(config, seed=0, global_batch=24)
    with pytest.raises(ValueError, match="global_batch=24 is not a multiple of 5 data ranks"):
        Loader(stream, rank=0, ranks=5, global_batch=24, micro_batch=1)


def test_an_error_in_the_thread_is_raised_by_its_step(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream.open(config, seed=0, global_batch=4)
    locate = Stream.locate

    def failing(self: Stream, numbers: Any) -> Any:
        if max(numbers) >= 40:
            raise RuntimeError("sequence 40 is damaged")
        return locate(self, numbers)

    monkeypatch.setattr(Stream, "locate", failing)
    loader = Loader(stream, rank=0, ranks=1, global_batch=4, micro_batch=4)
    for step in range(10):
        assert next(loader)[0].sequences[0] == 4 * step
    with pytest.raises(RuntimeError, match="sequence 40 is damaged"):
        next(loader)
    assert not list(loader)


def test_closing_joins_the_thread_whatever_it_is_doing(config: DataConfig) -> None:
    stream = Stream.open(config, seed=0, global_batch=4)
    for consumed_steps in (0, 1, 30):
        loader = Loader(stream, rank=0, ranks=1, global_batch=4, micro_batch=2, prefetch=1)
        for _ in zip(range(consumed_steps), loader):
            pass
        loader.close()
        loader.close()
        assert not any(thread.name == "data-loader" for thread in threading.enumerate())
        assert not list(loader)


def test_a_loader_that_is_moved_continues_as_a_new_one_there(config: DataConfig) -> None:
    def steps(loader: Loader, count: int) -> list[list[tuple[tuple[int, ...], dict[str, list[Any]]]]]:
        return [
            [(batch.sequences, {name: t.tolist() for name, t in batch.tensors.items()}) for batch in step]
            for _, step in zip(range(count), loader)
        ]

    stream = Stream.open(config, seed=0, global_batch=6)
    layout: dict[str, Any] = {"rank": 1, "ranks": 2, "global_batch": 6, "micro_batch": 1, "prefetch": 1}
    moved = Loader(stream, **layout)
    for start, count, close_before in ((0, 3, False), (42, 40, False), (6, 2, True), (6, 1, False)):
        if close_before:
            moved.close()
            assert not list(moved)
        moved.seek(start)
        new = Loader(stream, start=start, **layout)
        assert steps(moved, count) == steps(new, count)
        new.close()
    moved.close()
    assert not any(thread.name == "data-loader" for thread in threading.enumerate())


def test_a_loader_that_failed_can_be_moved_and_fails_at_the_same_step_again(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([15] * 10))
    stream = Stream.open(
        DataConfig([Source(str(tmp_path), max_epochs=1)], seq_len=16), seed=0, global_batch=4
    )
    loader = Loader(stream, rank=0, ranks=1, global_batch=4, micro_batch=4)
    for start, whole_steps in ((0, 2), (4, 1)):
        loader.seek(start)
        assert [next(loader)[0].sequences[0] for _ in range(whole_steps)] == list(range(start, 8, 4))
        with pytest.raises(ValueError, match="past the end of the data"):
            next(loader)
        assert not list(loader)


def test_damage_read_ahead_is_listed_once_when_it_is_read_again(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([15] * 40))
    shard = tmp_path / "shard-000000.tar"
    raw = bytearray(shard.read_bytes())
    raw[int(np.load(tmp_path / "shard-000000.idx.npy")[0, 2])] ^= 1
    shard.write_bytes(raw)
    cfg = DataConfig([Source(str(tmp_path), max_epochs=1)], seq_len=16, on_corrupt="quarantine")
    stream = Stream.open(cfg, seed=0, global_batch=4)
    loader = Loader(stream, rank=0, ranks=1, global_batch=4, micro_batch=4)
    assert len([next(loader) for _ in range(10)]) == 10
    listed = stream.quarantined
    (damaged,), copy = listed, dict(listed)
    loader.seek(damaged + 4)
    next(loader)
    assert stream.quarantined is listed and not listed  # what comes before is no longer listed
    loader.seek(0)
    assert len([next(loader) for _ in range(10)]) == 10 and listed == copy
    loader.close()


def test_the_end_of_the_data_is_one_line_at_its_step(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([15] * 10))
    stream = Stream.open(
        DataConfig([Source(str(tmp_path), max_epochs=1)], seq_len=16), seed=0, global_batch=4
    )
    assert stream.length == 10
    loader = Loader(stream, rank=0, ranks=1, global_batch=4, micro_batch=4)
    assert len([next(loader), next(loader)]) == 2
    with pytest.raises(ValueError, match="past the end of the data"):
        next(loader)
