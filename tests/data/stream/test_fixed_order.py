"""The order of the data, as numbers: a later version of the project reads what this one would have read."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig, MixtureStage, Packing, Source
from data.stream.mixture import build
from data.stream.order import ShuffledOrder, derive_key, permute
from data.stream.stream import Stream
from made_corpus import make_corpus, numbered_documents

KEY = 17763304480236637134
SMALL = [3, 7, 1, 4, 2, 6, 5, 0]
LARGE = [23811, 297245, 875336, 264196, 176386, 302169]
MIXTURE = (1480620181, 4079223189, [0, 3000, 4220])
LOCATED = [(0, 0, 0, 1), (0, 7, 1, 21), (1, 0, 2, 55), (2, 2, 3, 45), (2298850, 3, 4, 9)]
STREAMS = {
    "cut": {0: (4194376739, 22293539, 4020203332), 1000000000: (2148236680, 2570895108, 1041470745)},
    "best_fit": {0: (3317802269, 68102564, 2441585007), 1000000000: (2682942958, 3823391599, 1987476197)},
    "one": {0: (3057695313, 4058654371, 834366923), 1000000000: (1419930099, 518266318, 2374900706)},
}
PARTNERS = (1311512223, 728638376)
FINGERPRINTS = {"cut": "0f3e37b84592dc9d", "best_fit": "8d7c551b553387c1", "one": "259655a073fa6f27"}


def test_keys_and_permutations() -> None:
    assert derive_key(3, 1, "mixture") == KEY
    assert permute(np.arange(8), 8, 12345).tolist() == SMALL
    assert permute(np.arange(6), 1_000_003, 12345).tolist() == LARGE


def test_sources_windows_and_blocks() -> None:
    mixture = build([(0, [0.7, 0.3]), (3000, [0.5, 0.5])], [None, 1500], 5)
    sources, ordinals = mixture.locate(np.arange(6000))
    assert (crc(sources), crc(ordinals), [segment.start for segment in mixture.segments]) == MIXTURE
    order = ShuffledOrder(np.arange(1, 30), 4, 7)
    found = [
        (place.epoch, place.era, *which.tolist(), *windows.tolist())
        for place, which, windows in order.locate(np.array([0, 434, 435, 1000, 10**9]))
    ]
    assert found == LOCATED


@pytest.mark.parametrize("packing", ["cut", "best_fit", "one"])
def test_ids_of_a_stream(tmp_path: Path, packing: Packing) -> None:
    for name, lengths in (("a", [7, 0, 40, 13, 90] * 12), ("b", [25, 60, 1] * 15)):
        make_corpus(tmp_path / name, numbered_documents(lengths))
    sources = [Source(str(tmp_path / "a"), 2.0), Source(str(tmp_path / "b"), 1.0, "b")]
    cfg = DataConfig(sources, seq_len=32, shuffle_blocks=3, packing=packing, document_mask=True)
    cfg.stages = [MixtureStage(10, {"b": 5.0})]
    stream = Stream.open(cfg, seed=3, global_batch=8)
    for first, expected in STREAMS[packing].items():
        rows = stream.read(range(first, first + 200))
        assert (crc(rows.tokens), crc(rows.positions), crc(rows.documents)) == expected, first
    assert stream.fingerprint[:16] == FINGERPRINTS[packing]


def test_partners(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([7, 0, 40, 13, 90] * 12))
    cfg = DataConfig([Source(str(tmp_path))], seq_len=32, shuffle_blocks=3, partners=True)
    rows = Stream.open(cfg, seed=3, global_batch=8).read(range(200))
    assert (crc(rows.partner), crc(rows.partner_following)) == PARTNERS


def crc(values: np.ndarray | None) -> int:
    assert values is not None
    return zlib.crc32(np.ascontiguousarray(values, dtype="<i8"))
