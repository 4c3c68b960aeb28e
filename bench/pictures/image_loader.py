"""Pictures a second of the loader against torchvision's and WebDataset's, in one run: same JPEGs, same views,
page cache warm, interleaved, each with as many threads or worker processes as there are cores.

    python bench/pictures/image_loader.py [--pictures N] [--width W] [--height H] [--size S] [--rows N]

Random resized crops (at least a quarter of the picture), mirrored or not, scaled to S × S by the bicubic
filter, uint8 batches in the process:

* germinal: the loader; threads decode ahead. JPEGs of which every crop is at least four views wide are
  decoded at half their size ("draft"), and so on.
* germinal, whole decode: the same with that switched off: every picture is decoded whole, as by the others.
* torch DataLoader, same pixels: worker processes that call the same functions, draft included: only the
  pipeline differs.
* torchvision: DataLoader, ImageFolder and torchvision's transforms, as its documentation has it.
* WebDataset: its own pipeline and WebLoader, with torchvision's transforms.

What is not installed is named and left out. A contender is started anew in each round, gives two batches, and
is then measured: none works ahead while another one is measured. The pictures are crops of a photograph that
matplotlib brings. Writes bench/results/image_loader.json.
"""

from __future__ import annotations

import argparse
import functools
import gc
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
import torch
import webdataset
from contenders import Contender, image_folder, same_pixels, webdataset_pipeline
from PIL import Image

from data.config import Augment, DataConfig, Source
from data.pictures import decoders
from data.prepare.prepare import prepare
from data.stream.loader import Loader
from data.stream.stream import Stream

AUGMENT = Augment(crop_scale=0.25, flip=0.5)
RESULTS = Path(__file__).parents[1] / "results" / "image_loader.json"
SECONDS = 5.0


def main() -> None:
    """Makes the pictures in a temporary folder, runs the rounds, prints one line a contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _make_pictures(folder, args.pictures, args.width, args.height)
        contenders = _contenders(folder, args.size, args.rows, workers)
        rates: dict[str, list[Rate]] = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, contender in contenders.items():
                rates[name].append(_rate(contender, args.rows))
    found = {name: _figures(rates["germinal"], values) for name, values in rates.items()}
    print(f"{args.width} × {args.height} to {args.size}, {args.rows} rows, {workers} threads or workers")
    for name, figures in found.items():
        print(
            f"{name:34s} " + "   ".join(f"{key.replace('_', ' ')} {value}" for key, value in figures.items())
        )
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report[f"{args.width}x{args.height} to {args.size}"] = {
        "machine": f"CPU, {workers} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}",
        **vars(args),
        "contenders": found,
    }
    RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _contenders(folder: Path, size: int, rows: int, workers: int) -> dict[str, Contender]:
    spare = decoders._SPARE
    tars = [str(path) for path in sorted((folder / "tars").glob("*.tar"))]
    given = {"cfg": AUGMENT, "size": size, "rows": rows, "workers": workers}
    contenders: dict[str, Contender] = {
        "germinal": functools.partial(_germinal, folder / "corpus", size, rows, spare),
        "germinal, whole decode": functools.partial(_germinal, folder / "corpus", size, rows, float("inf")),
        "torch DataLoader, same pixels": same_pixels(folder / "in", **given, spare=spare),
        "WebDataset": webdataset_pipeline(tars, **given),
    }
    try:
        contenders["torchvision"] = image_folder(folder / "in", **given)
    except ImportError:
        print("torchvision: not installed; WebDataset with our transform")
    return contenders


def _germinal(corpus: Path, size: int, rows: int, spare: float) -> Iterator[Any]:
    decoders._SPARE = spare
    cfg = DataConfig([Source(str(corpus))], packing="one", seq_len=1, image_size=size, augment=AUGMENT)
    loader = Loader(
        Stream.open(cfg, seed=0, global_batch=rows), rank=0, ranks=1, global_batch=rows, micro_batch=rows
    )
    try:
        for step in loader:
            yield from (batch.tensors["image"] for batch in step)
    finally:
        loader.close()


@dataclass(frozen=True)
class Rate:
    """Pictures a second of the clock; and of the time of all processes, which a busy machine leaves alone."""

    wall: float
    cpu: float


def _figures(ours: list[Rate], values: list[Rate]) -> dict[str, float]:
    """Medians; the ratios are of neighbours in time."""
    found = {}
    for clock in ("wall", "cpu"):
        rates = [getattr(value, clock) for value in values]
        ratios = [getattr(mine, clock) / rate for mine, rate in zip(ours, rates)]
        found[f"images_a_second_{clock}"] = round(statistics.median(rates), 1)
        found[f"germinal_over_it_{clock}"] = round(statistics.median(ratios), 3)
    return found


def _rate(contender: Contender, rows: int) -> Rate:
    """Pictures a second, after two batches."""
    batches = contender()
    for _ in range(2):
        assert len(_pixels(next(batches))) == rows
    count, begin, begin_cpu = 0, time.perf_counter(), _cpu_seconds()
    while time.perf_counter() - begin < SECONDS:
        _pixels(next(batches))
        count += rows
    rate = Rate(count / (time.perf_counter() - begin), count / (_cpu_seconds() - begin_cpu))
    if hasattr(batches, "close"):
        batches.close()
    del batches
    gc.collect()  # a DataLoader ends its workers when it goes
    return rate


def _cpu_seconds() -> float:
    """Time of this process and of its workers, in user and system mode, of those that have ended as well."""
    me = psutil.Process()
    running = sum(sum(process.cpu_times()[:2]) for process in me.children(recursive=True))
    return running + sum(os.times()[:4])


def _pixels(batch: Any) -> torch.Tensor:
    pixels = batch[0] if isinstance(batch, list | tuple) else batch
    assert pixels.dtype == torch.uint8 and pixels.ndim >= 4
    return pixels


def _make_pictures(folder: Path, count: int, width: int, height: int) -> None:
    """Crops of a photograph as a folder of classes, as WebDataset shards and as a corpus."""
    photograph = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    rng = np.random.default_rng(0)
    (folder / "tars").mkdir()
    with webdataset.ShardWriter(str(folder / "tars/%03d.tar"), maxcount=-(-count // 8), verbose=0) as tars:
        for number in range(count):
            wide = rng.integers(photograph.width // 2, photograph.width)
            high = min(photograph.height, wide * height // width)
            left, upper = (
                rng.integers(0, photograph.width - wide + 1),
                rng.integers(0, photograph.height - high + 1),
            )
            crop = photograph.resize(
                (width, height), Image.Resampling.BICUBIC, (left, upper, left + wide, upper + high)
            )
            file = io.BytesIO()
            crop.save(file, "JPEG", quality=90)
            path = folder / "in" / f"{number % 4}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.getvalue())
            tars.write({"__key__": f"{number:06d}", "jpg": file.getvalue(), "cls": number % 4})
    prepare([str(folder / "in")], folder / "corpus", workers=1, progress=False)


if __name__ == "__main__":
    main()
