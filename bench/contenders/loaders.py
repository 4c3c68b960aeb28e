"""The data loaders of others that bench/loader.py compares with; see there what each does.

Each function writes the ids below `folder`, in the format of its loader, and returns a function of endless
micro-batches: (tokens, targets), int64 [rows, seq_len].

folder: where the inputs are written.
flat: all ids, a separator before each document, uint16 [tokens].
seq_len, micro_batch: inputs of a row, rows of a micro-batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

Contender = Callable[[], Iterator[Any]]


def memmap(folder: Path, flat: np.ndarray, seq_len: int, micro_batch: int, *, rowwise: bool) -> Contender:
    flat.tofile(folder / "flat.bin")

    def batches() -> Iterator[Any]:
        ids = np.memmap(folder / "flat.bin", dtype=np.uint16, mode="r")
        windows = np.lib.stride_tricks.sliding_window_view(ids, seq_len + 1)[::seq_len]
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(len(windows))
            for first in range(0, len(order) - micro_batch, micro_batch):
                places = order[first : first + micro_batch]
                if rowwise:
                    starts = (places * seq_len).tolist()
                    yield tensors(np.stack([ids[a : a + seq_len + 1] for a in starts]))
                else:
                    yield tensors(windows[places])

    return batches


def tensors(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.from_numpy(rows.astype(np.int64))
    return wide[:, :-1], wide[:, 1:]


def webdataset_tars(folder: Path, flat: np.ndarray, seq_len: int, micro_batch: int) -> Contender:
    windows = np.lib.stride_tricks.sliding_window_view(flat, seq_len + 1)[::seq_len]
    (folder / "wds").mkdir()
    urls = []
    for shard, first in enumerate(range(0, len(windows), 4096)):
        urls.append(str(folder / "wds" / f"{shard:04d}.tar"))
        with webdataset.TarWriter(urls[-1], mtime=0) as tar:
            for i, row in enumerate(windows[first : first + 4096]):
                tar.write({"__key__": f"{first + i:09d}", "npy": row})

    def batches() -> Iterator[Any]:
        dataset = webdataset.WebDataset(urls, shardshuffle=100, seed=0).shuffle(1000).decode().to_tuple("npy")
        while True:
            for (rows,) in dataset.batched(micro_batch, partial=False):
                yield tensors(np.asarray(rows))

    return batches


def mosaic(folder: Path, flat: np.ndarray, seq_len: int, micro_batch: int) -> Contender:
    from streaming import MDSWriter, StreamingDataset

    windows = np.lib.stride_tricks.sliding_window_view(flat, seq_len + 1)[::seq_len]
    with MDSWriter(out=str(folder / "mds"), columns={"ids": f"ndarray:uint16:{seq_len + 1}"}) as writer:
        for row in windows:
            writer.write({"ids": np.ascontiguousarray(row)})

    def batches() -> Iterator[Any]:
        dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=micro_batch)
        while True:
            rows = iter(dataset)
            while len(batch := [row["ids"] for row in itertools.islice(rows, micro_batch)]) == micro_batch:
                yield tensors(np.stack(batch))

    return batches


def stateful(
    folder: Path, flat: np.ndarray, seq_len: int, micro_batch: int, *, own_collate: bool
) -> Contender:
    from torchdata.stateful_dataloader import StatefulDataLoader

    class Windows(torch.utils.data.Dataset):
        def __init__(self) -> None:
            ids = np.memmap(folder / "flat.bin", dtype=np.uint16, mode="r")
            self.windows = np.lib.stride_tricks.sliding_window_view(ids, seq_len + 1)[::seq_len]

        def __len__(self) -> int:
            return len(self.windows)

        def __getitem__(self, place: int) -> Any:
            window = self.windows[place]
            if own_collate:
                return window
            ids = torch.from_numpy(window.astype(np.int64))
            return {"tokens": ids[:-1], "targets": ids[1:]}

    def batches() -> Iterator[Any]:
        dataset = Windows()
        collate = (lambda rows: tensors(np.stack(rows))) if own_collate else None
        while True:
            yield from StatefulDataLoader(
                dataset,
                batch_size=micro_batch,
                shuffle=True,
                drop_last=True,
                collate_fn=collate,
            )

    return batches
