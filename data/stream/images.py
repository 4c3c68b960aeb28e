"""The pictures of a stream's sequences, decoded by threads while their rows wait to be used."""

from __future__ import annotations

from collections.abc import Callable

import torch

from data.config import DataConfig
from data.corpus.corpus import Corpus
from data.pictures.decoders import DecodedPictures, Decoders
from data.stream.batch import Batch
from data.stream.order import derive_key
from data.stream.rows import LocatedRows


class ImagesAhead:
    """The threads that decode the pictures of one reader of a stream; close them when done.

    A sequence's views are a pure function of the seed and the sequence number.

    cfg: how views are made.
    seed: of the run.
    eos: the separator, which fills masked rows.
    damaged: called with the number of a sequence whose picture cannot be shown, and the reason.
    """

    def __init__(self, cfg: DataConfig, seed: int, eos: int, damaged: Callable[[int, str], None]) -> None:
        self._eos, self._damaged = eos, damaged
        self._decoders = Decoders(cfg, derive_key(seed, "views of pictures"))

    def submit(self, located: LocatedRows, begin: int, end: int) -> DecodedPictures:
        """Begin to decode the pictures of rows [begin, end): with pictures a row is one document."""
        assert located.media is not None
        shards, places = located.views[begin:end], located.media[:, begin:end]
        return self._decoders.submit(located.numbers[begin:end], shards, places)

    def shown(self, batch: Batch, pictures: DecodedPictures) -> Batch:
        """The batch with its pictures, once they are decoded. Rows whose picture is damaged are reported and
        masked.
        """
        damaged = pictures.wait()
        shown = Batch(batch.tensors | {"image": torch.from_numpy(pictures.pixels)}, batch.sequences)
        if not damaged:
            return shown
        for row, reason in damaged.items():
            self._damaged(batch.sequences[row], reason)
        return shown.masked({batch.sequences[row] for row in damaged}, eos=self._eos)

    def close(self) -> None:
        """End the threads; see `Decoders.close`."""
        self._decoders.close()


def check_pictures(key: str, corpus: Corpus, cfg: DataConfig) -> None:
    """Raise ValueError, naming the config's `key`, where the config wants pictures and a corpus has none."""
    if cfg.image_size and not corpus.manifest.media:
        raise ValueError(
            f"{key}: {corpus.storage.path} has no pictures, and data.image_size={cfg.image_size} reads them: "
            "prepare a corpus from pictures, or leave data.image_size out"
        )
