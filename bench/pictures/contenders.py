"""The picture loaders of others that bench/pictures/image_loader.py compares with; see there what each does.

Each function returns a function that starts the loader anew and returns its endless batches, uint8.

folder: CLASS/NAME.jpg.
tars: WebDataset shards with the same pictures, KEY.jpg and KEY.cls.
size: of a view, in pixels.
rows: of a batch.
workers: processes.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset, RandomSampler

from data.config import Augment
from data.pictures.augment import drawn_view, render, uniforms
from data.pictures.decode import OpenedPicture

Contender = Callable[[], Iterator[Any]]


def torchvision() -> Any:
    """torchvision's package. Its wheel for CUDA has compiled functions that torch for CPUs cannot load, and
    which no transform of a PIL picture needs: their registration is left out where it fails.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        without = "torchvision._meta_registrations"
        sys.modules[without] = types.ModuleType(without)
    return importlib.import_module("torchvision.transforms")


def usual_transform(cfg: Augment, size: int) -> Any:
    """What people write: torchvision's transforms of a PIL picture."""
    made = torchvision()
    return made.Compose(
        [
            made.RandomResizedCrop(size, (cfg.crop_scale, 1.0), interpolation=made.InterpolationMode.BICUBIC),
            made.RandomHorizontalFlip(cfg.flip),
            made.PILToTensor(),
        ]
    )


def our_transform(cfg: Augment, size: int, spare: float) -> Callable[[bytes, int], np.ndarray]:
    """The decoding and scaling of `data.pictures`, of one picture: the same pixels as the loader's."""

    def transform(raw: bytes, number: int) -> np.ndarray:
        picture = OpenedPicture(raw)
        view = drawn_view(cfg, uniforms(0, np.array([number]), 1)[0, 0], picture.width, picture.height)
        left, upper, right, lower = view.box
        loaded = picture.load(shrink=spare * size / min(right - left, lower - upper))
        return render(loaded, view, (loaded.width / picture.width, loaded.height / picture.height), size)

    return transform


class Files(Dataset):
    """The pictures of a folder of classes, decoded by `our_transform`."""

    def __init__(self, folder: Path, transform: Callable[[bytes, int], np.ndarray]) -> None:
        self._paths, self._transform = sorted(folder.glob("*/*.jpg")), transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        return torch.from_numpy(self._transform(self._paths[place].read_bytes(), place).copy())


def image_folder(folder: Path, cfg: Augment, size: int, rows: int, workers: int) -> Contender:
    transform = usual_transform(cfg, size)
    from torchvision.datasets import ImageFolder

    return _data_loader(ImageFolder(str(folder), transform), rows, workers)


def same_pixels(folder: Path, cfg: Augment, size: int, rows: int, workers: int, spare: float) -> Contender:
    return _data_loader(Files(folder, our_transform(cfg, size, spare)), rows, workers)


def _data_loader(dataset: Dataset, rows: int, workers: int) -> Contender:
    """Endless, so that no epoch ends while it is measured: its workers would be started anew."""

    def batches() -> Iterator[Any]:
        endless = RandomSampler(dataset, replacement=True, num_samples=1 << 24)  # type: ignore[arg-type]
        return iter(DataLoader(dataset, rows, sampler=endless, num_workers=workers))

    return batches


def webdataset_pipeline(tars: list[str], cfg: Augment, size: int, rows: int, workers: int) -> Contender:
    """WebDataset's own: shuffle buffer, decoded to PIL pictures, batched in the workers, as its README has
    it. With torchvision's transform, or with ours where that is not installed.
    """
    try:
        transform = usual_transform(cfg, size)
    except ImportError:
        ours = our_transform(cfg, size, float("inf"))
        pipeline = (
            webdataset.WebDataset(tars, shardshuffle=len(tars), nodesplitter=None)
            .shuffle(1000)
            .to_tuple("jpg", "cls")
            .map_tuple(lambda raw: torch.from_numpy(ours(raw, 0).copy()), int)
        )
    else:
        pipeline = (
            webdataset.WebDataset(tars, shardshuffle=len(tars))
            .shuffle(1000)
            .decode("pil")
            .to_tuple("jpg", "cls")
            .map_tuple(transform, int)
        )

    def batches() -> Iterator[Any]:
        loader = webdataset.WebLoader(
            pipeline.batched(rows, partial=False).repeat(), batch_size=None, num_workers=workers
        )
        return iter(loader)

    return batches
