"""Loader tokens/s against what others do, in one run: same ids, same batches, page cache warm, interleaved.

    python bench/loader.py [--tokens N] [--seq-len N] [--micro-batch N]

Every contender yields shuffled micro-batches of int64 tokens and targets, [rows, seq_len], as torch tensors
in the process: all but "default collate" convert once, views of one tensor a column apart, as the loader's
are. What each does:

* germinal: the loader with its thread, over tars of documents, windows packed as they are read, checksums.
* permuted memmap: one flat file without document boundaries, checksums or a shuffle that could be resumed.
  "Row by row" slices its rows one at a time, as most trainers do; its ratio to plain WebDataset is that of
  the figures we are held against (795 to 31 million tokens a second), so we take the goal of half to be its.
  "One gather" is a fancy index over all rows of a micro-batch, the fastest that NumPy can: half of that is
  out of our reach.
* webdataset: `WebDataset` with its shuffle buffer over tars that hold one window a sample, decoded, batched.
* mosaicml-streaming: `StreamingDataset` over MDS shards of windows, its own shuffle.
* torchdata.StatefulDataLoader: a map-style dataset of the memmap's windows, `shuffle=True`, whose state can
  be saved; no worker processes, which are slower. "Default collate": a sample is a dict of int64 tensors and
  the library stacks them, as its documentation has it. "NumPy collate": a function of ours stacks raw windows
  and converts once; the library then only draws the numbers, and it is the memmap row by row.

What is not installed is named and left out. Then: time from a made stream to its first batch at sequence
10³ and at 10⁷, the index loaded. Writes bench/results/loader.json.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from contenders.loaders import Contender, memmap, mosaic, stateful, webdataset_tars

from data.config import DataConfig, Source
from data.corpus.manifest import Manifest, TokenizerEntry, write_manifest
from data.corpus.scan import index_shard
from data.stream.loader import Loader
from data.stream.stream import Stream

VOCAB = 50_000
SHARD_DOCUMENTS = 8192
ROUNDS = 7
RESULTS = Path(__file__).parent / "results" / "loader.json"


def main() -> None:
    """Builds the inputs in a temporary folder, runs the rounds, prints one line a contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=30_000_000)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--mean-document", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        documents = _documents(args.tokens, args.mean_document)
        _write_corpus(folder / "corpus", documents)
        report: dict[str, Any] = {
            "machine": f"CPU, {os.cpu_count()} cores, torch {torch.__version__}",
            "seq_len": args.seq_len,
            "micro_batch": args.micro_batch,
            "tokens": args.tokens,
            "contenders": _compare(folder, documents, args.seq_len, args.micro_batch),
            "first_batch_ms_at_sequence": _resume(folder, args.seq_len),
        }
    RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _compare(folder: Path, documents: list[np.ndarray], seq_len: int, micro_batch: int) -> dict[str, Any]:
    flat = np.concatenate([part for ids in documents for part in ([0], ids)]).astype(np.uint16)
    contenders: dict[str, Contender] = {
        "germinal": lambda: _germinal(folder / "corpus", seq_len, micro_batch, documents),
        "permuted memmap, row by row": memmap(folder, flat, seq_len, micro_batch, rowwise=True),
        "permuted memmap, one gather": memmap(folder, flat, seq_len, micro_batch, rowwise=False),
        "webdataset, one sequence a sample": webdataset_tars(folder, flat, seq_len, micro_batch),
    }
    torchdata = "torchdata.StatefulDataLoader, "
    for name, make in (
        ("mosaicml-streaming", mosaic),
        (f"{torchdata}default collate", functools.partial(stateful, own_collate=False)),
        (f"{torchdata}NumPy collate", functools.partial(stateful, own_collate=True)),
    ):
        try:
            contenders[name] = make(folder, flat, seq_len, micro_batch)
        except ImportError:
            print(f"{name}: not installed")
    rates: dict[str, list[Rate]] = {name: [] for name in contenders}
    running = {name: contender() for name, contender in contenders.items()}
    for batches in running.values():  # first pass of checksums, caches and pages
        _rate(batches, seq_len * micro_batch, 0.3)
    for _ in range(ROUNDS):
        for name, batches in running.items():
            rates[name].append(_rate(batches, seq_len * micro_batch, 0.5))
    ours = rates["germinal"]
    print(f"seq_len {seq_len}, micro-batch {micro_batch}, {len(documents)} documents, {len(flat):,} tokens")
    cold = _germinal(folder / "corpus", seq_len, micro_batch, [])
    hashed = [_rate(cold, seq_len * micro_batch, 0.5) for _ in range(ROUNDS)]
    rates["germinal, every document hashed"] = hashed
    for name, values in rates.items():
        print(f"{name:46s} {_line(ours, values)}")
    return {name: _figures(ours, values) for name, values in rates.items()}


def _figures(ours: list[Rate], values: list[Rate]) -> dict[str, float]:
    """Medians; the ratios are of neighbours in time."""
    found = {}
    for clock in ("wall", "cpu"):
        rates = [getattr(value, clock) for value in values]
        ratios = [getattr(mine, clock) / rate for mine, rate in zip(ours, rates)]
        found[f"million_tokens_a_second_{clock}"] = round(statistics.median(rates) / 1e6, 1)
        found[f"germinal_over_it_{clock}"] = round(statistics.median(ratios), 3)
    return found


def _line(ours: list[Rate], values: list[Rate]) -> str:
    found = _figures(ours, values)
    return "   ".join(
        f"{clock}: {found[f'million_tokens_a_second_{clock}']:7.1f} Mtok/s, "
        f"germinal {found[f'germinal_over_it_{clock}']:6.2f}×"
        for clock in ("wall", "cpu")
    )


@dataclass(frozen=True)
class Rate:
    """Tokens a second of the clock; and of the process's own time, which a busy machine leaves alone."""

    wall: float
    cpu: float


def _rate(batches: Iterator[Any], tokens: int, seconds: float) -> Rate:
    count, begin, begin_cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        for _ in range(16):
            next(batches)
        count += 16
    done = count * tokens
    return Rate(done / (time.perf_counter() - begin), done / (time.process_time() - begin_cpu))


def _germinal(folder: Path, seq_len: int, micro_batch: int, documents: list[np.ndarray]) -> Iterator[Any]:
    """The loader; with `documents`, all of them hashed before, as in every epoch's later sequences."""
    stream = Stream.open(DataConfig([Source(str(folder))], seq_len=seq_len), seed=0, global_batch=micro_batch)
    if documents:
        total = next(iter(stream.sequences_per_epoch.values()))
        for first in range(0, total, 1024):
            stream.read(range(first, min(first + 1024, total)))
        # Stay in the epoch whose documents were hashed: a new era hashes anew.
        loaders = (_loader(stream, micro_batch) for _ in itertools.count())
        for loader in loaders:
            for batches in itertools.islice(loader, total // micro_batch):
                yield from batches
            loader.close()
    for batches in _loader(stream, micro_batch):
        yield from batches


def _loader(stream: Stream, micro_batch: int) -> Loader:
    return Loader(stream, rank=0, ranks=1, global_batch=micro_batch, micro_batch=micro_batch)


def _resume(folder: Path, seq_len: int) -> dict[int, float]:
    stream = Stream.open(
        DataConfig([Source(str(folder / "corpus"))], seq_len=seq_len), seed=0, global_batch=32
    )
    times: dict[int, list[float]] = {1_000: [], 10_000_000: []}
    for _, (start, values) in itertools.product(range(ROUNDS), times.items()):
        for source in stream.sources:  # as after a start: no era is open
            source.era.cache_clear()
            source.order._epoch.cache_clear()
        begin = time.perf_counter()
        loader = Loader(stream, rank=0, ranks=1, global_batch=32, micro_batch=8, start=start)
        next(loader)
        values.append(time.perf_counter() - begin)
        loader.close()
    for start, values in times.items():
        print(f"first batch at sequence {start:>10,}: {statistics.median(values) * 1e3:6.1f} ms")
    return {start: round(statistics.median(values) * 1e3, 2) for start, values in times.items()}


def _documents(tokens: int, mean: int) -> list[np.ndarray]:
    """Documents of random ids whose lengths spread as text's do: log-normal."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(np.log(mean) - 0.5, 1.0, tokens // mean)).astype(np.int64)
    ids = rng.integers(1, VOCAB, int(lengths.sum())).astype(np.uint16)
    return np.split(ids, np.cumsum(lengths)[:-1])


def _write_corpus(folder: Path, documents: list[np.ndarray]) -> None:
    folder.mkdir()
    shards = []
    for shard, first in enumerate(range(0, len(documents), SHARD_DOCUMENTS)):
        path = folder / f"shard-{shard:06d}.tar"
        with webdataset.TarWriter(str(path), mtime=0) as tar:
            for i, ids in enumerate(documents[first : first + SHARD_DOCUMENTS]):
                tar.write({"__key__": f"{first + i:09d}", "npy": ids, "json": {"text_bytes": len(ids)}})
        shards.append(index_shard(path, dtype="uint16", vocab=VOCAB))
    (folder / "tokenizer.json").write_text("{}")
    entry = TokenizerEntry("tokenizer.json", hashlib.sha256(b"{}").hexdigest(), VOCAB, 0)
    write_manifest(folder, Manifest(entry, "uint16", 4096, tuple(shards)))


if __name__ == "__main__":
    main()
