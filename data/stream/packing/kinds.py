"""`data.packing` → the way to pack that it names."""

from __future__ import annotations

from data.stream.packing.alone import Marked, One, Pair, Views
from data.stream.packing.joined import BestFit, Cut
from data.stream.packing.packing import Packing

MOST_SEQ_LEN = (1 << 31) - 1  # packing keeps a bit for each length
PACKINGS: dict[str, type[Packing]] = {
    "cut": Cut,
    "best_fit": BestFit,
    "one": One,
    "views": Views,
    "pair": Pair,
    "marked": Marked,
}
