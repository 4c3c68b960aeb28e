"""One rank's own copy of the corpus is damaged: all that read the same sequences mask them alike."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from data.config import DataConfig, Source
from data.stream.stream import Stream
from parallel.world.runtime import Runtime
from trainer.config import reading
from trainer.run import assemble
from whole_runs import events, make_corpus, records, write_config

STEPS, BATCH = 4, 8
LAYOUTS = (("tp=2",), ("pp=2",), ("cp=2",), ("zero=1",))


def run(context: Any, config: Path, copies: list[Path], overrides: list[str]) -> None:
    """A whole run on the ranks of a pool, each of which reads a copy of its own."""
    own = f"data.sources=[{{path: {copies[context.rank]}, name: texts}}]"
    cfg = reading.load(config, [own, *overrides])
    with ExitStack() as stack:
        runtime = Runtime(context.rank, context.world, context.rank, torch.device("cpu"))
        assert assemble(cfg, runtime, stack)()


def of_the_second_half(corpus: Path) -> Iterator[tuple[int, int, set[int]]]:
    """(shard, first byte, sequences) of the documents that only the second of two data ranks reads."""
    stream = Stream.open(DataConfig([Source(str(corpus))], seq_len=32), seed=0, global_batch=BATCH)
    found: dict[tuple[int, int], set[int]] = {}
    for number in range(STEPS * BATCH):
        _, era, spans = stream.find(number)
        for document in spans.fragments.document.tolist():
            found.setdefault((int(era.shard[document]), int(era.offset[document])), set()).add(number)
    for (shard, offset), numbers in found.items():
        if all(number % BATCH >= BATCH // 2 for number in numbers):
            yield shard, offset, numbers


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, set[int]]:
    """A whole copy, a damaged one, and the sequences that the damage is in, the first step's among them."""
    folder = tmp_path_factory.mktemp("copies")
    whole = make_corpus(folder, documents=60) / "train"
    damaged = shutil.copytree(whole, folder / "damaged")
    shard = damaged / "shard-000000.tar"
    data, hit = bytearray(shard.read_bytes()), set[int]()
    for number, offset, numbers in of_the_second_half(whole):
        assert number == 0, "the corpus has one shard"
        data[offset] ^= 0x04
        hit |= numbers
    shard.write_bytes(data)
    assert min(hit) < BATCH and len({number // BATCH for number in hit}) > 1
    return whole, damaged, hit


@pytest.fixture(scope="module")
def config(copies: tuple[Path, Path, set[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes: dict[str, Any] = {"train__steps": STEPS, "train__eval_every": 0, "checkpoint__every": 0}
    changes |= {"train__micro_batch": 4}
    changes |= {"data__on_corrupt": "quarantine", "data__heldout": [], "data__document_mask": True}
    return write_config(tmp_path_factory.mktemp("config"), copies[0].parent, model__layers=2, **changes)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda keys: keys[0])
def test_peers_mask_what_one_of_them_cannot_read(
    ranks: Any, tmp_path: Path, config: Path, copies: tuple[Path, Path, set[int]], layout: tuple[str, ...]
) -> None:
    whole, damaged, hit = copies
    keys = [f"parallel.{key}" for key in layout]
    for name, read in (("all", [damaged, damaged]), ("one", [whole, damaged])):
        overrides = [*keys, f"run_dir={tmp_path / name}"]
        ranks(2).run(run, config, read, overrides, timeout_seconds=300.0)
    everywhere, one = (records(tmp_path / name / "metrics.jsonl") for name in ("all", "one"))
    assert [line["step"] for line in one] == list(range(1, STEPS + 1))
    assert one == everywhere, "as if every copy had the damage"

    listed = [records(tmp_path / name / "quarantine.jsonl") for name in ("all", "one")]
    found_by = [entry.pop("ranks", None) for entry in listed[1]]
    for entry in (*listed[0], *listed[1]):
        entry.pop("ranks", None), entry.pop("shard")
    assert listed[1] == listed[0], "the same list, each damage once"
    assert {entry["sequence"] for entry in listed[1]} == hit
    if layout == ("zero=1",):
        assert set(map(str, found_by)) == {"None"}, "no other rank reads these sequences"
    else:
        assert found_by == [[1]] * len(found_by)
        assert all("rank 1" in event["reason"] for event in events(tmp_path / "one", "quarantine"))
