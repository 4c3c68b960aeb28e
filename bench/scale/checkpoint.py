"""What a checkpoint costs rank 0 and another rank besides its tensors' bytes, for 8 to 1,024 ranks.

`python bench/scale/checkpoint.py [--ranks N,N,…]`: the weights and moments of a 7B decoder (873 tensors) over
ZeRO shards. The ranks hold no weights: each describes its pieces as a save does and posts its part as a note
in a folder, and rank 0 joins the parts. Timed by CPU time:

    part     a rank describes what it wrote, and posts that
    merge    rank 0 reads all parts, joins them, checks that they tile every tensor, and encodes the manifest
    read     a rank reads the manifest, and finds the pieces that it needs
    listed   the same three where every piece is listed one by one, as in version 1 of the manifest

`notes` are the bytes that rank 0 reads, `manifest` those that each rank reads, `shares` rank 0's part of a
verification divided by the mean of all ranks, in bytes, and `looks` how often a second all ranks together
look for a note while they wait for a commit. The last row has the exponents of the power law from the first
number of ranks to the last. Writes bench/results/scale/checkpoint.json.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import torch

from parallel.engine import Chunk
from parallel.layout.cuts import shard_rows
from trainer.checkpoint.loading import share_of
from trainer.checkpoint.manifest import MANIFEST, FileEntry, Manifest, encode, read_manifest
from trainer.checkpoint.merge import Part, Table, decode_table, encode_table, merge
from trainer.checkpoint.saving.attempt import longest_pause
from trainer.checkpoint.saving.board import FolderBoard
from trainer.checkpoint.store import described

RESULTS = Path(__file__).parents[1] / "results/scale/checkpoint.json"
LAYERS, HIDDEN, FFN, VOCAB = 32, 4096, 11008, 32000
MOST_LISTED = 64  # ranks whose pieces are listed one by one, for the comparison
COLUMNS = ("part", "merge", "read", "listed", "notes", "manifest", "shares", "looks")


def shapes() -> dict[str, tuple[int, ...]]:
    """Name → shape of each tensor of the checkpoint."""
    square, wide = (HIDDEN, HIDDEN), (FFN, HIDDEN)
    layer = {**dict.fromkeys("qkvo", square), "gate": wide, "up": wide, "down": (HIDDEN, FFN)}
    layer |= {"norm_1": (HIDDEN,), "norm_2": (HIDDEN,)}
    model = {f"blocks.{number}.{name}": shape for number in range(LAYERS) for name, shape in layer.items()}
    model |= {"embedding": (VOCAB, HIDDEN), "head": (VOCAB, HIDDEN), "norm": (HIDDEN,)}
    kinds = ("model", "optim.exp_avg", "optim.exp_avg_sq")
    return {f"{kind}.{name}": shape for kind in kinds for name, shape in model.items()}


def chunks_of(rank: int, ranks: int, *, listed: bool) -> list[Chunk]:
    """The rank's shards, without memory."""
    found = []
    all_shapes = shapes()
    for name, shape in all_shapes.items():
        start, rows = shard_rows(shape[0], rank, ranks)
        parts = () if listed else ((ranks,), *((1,),) * (len(shape) - 1))
        tensor = torch.empty((rows, *shape[1:]), device="meta")
        offset = (start, *(0,) * (len(shape) - 1))
        found.append(Chunk(name, tensor, shape, offset, True, parts))
    return found


def post(board: FolderBoard, rank: int, chunks: Sequence[Chunk]) -> None:
    """What `Attempt.publish` does; the file's size is that of the tensors."""
    name = f"rank-{rank:05d}.safetensors"
    size = sum(4 * chunk.tensor.numel() for chunk in chunks)
    part = described(rank, [name], [chunks], {name: FileEntry(size, f"{rank:032x}")})
    for share in part.shares:
        if board.missing([f"table-{share.digest}"]) and board.claim(f"table-{share.digest}"):
            board.post(f"table-{share.digest}", encode_table(share.table))
    board.post(f"part-{rank:05d}", orjson.dumps(part.to_json()))


def join(board: FolderBoard, ranks: int) -> bytes:
    """What rank 0 does: notes → the manifest's file."""

    @cache
    def table(key: str) -> Table:
        return decode_table(board.read(f"table-{key}") or b"")

    notes = [board.read(f"part-{rank:05d}") or b"" for rank in range(ranks)]
    files, tensors = merge([Part.from_json(orjson.loads(note), table) for note in notes])
    return encode(Manifest(files, tensors, step=1, sequences=8))


def measure(ranks: int, folder: Path, *, listed: bool) -> dict[str, float]:
    """CPU seconds and bytes of one save and one read by so many ranks."""
    board = FolderBoard(folder / f"notes-{ranks}-{listed}")
    mine = chunks_of(ranks - 1, ranks, listed=listed)
    for rank in range(ranks - 1):
        post(board, rank, chunks_of(rank, ranks, listed=listed))
    begin = time.process_time()
    post(board, ranks - 1, mine)
    posted = time.process_time()
    data = join(board, ranks)
    joined = time.process_time()
    at = folder / f"manifest-{ranks}-{listed}"
    at.mkdir()
    (at / MANIFEST).write_bytes(data)
    before = time.process_time()
    manifest = read_manifest(at)
    for chunk in mine:
        assert len(list(manifest.stored(chunk.name, chunk.offset, chunk.tensor.shape))) == 1, chunk.name
    read = time.process_time()
    share = share_of(manifest, 0, ranks, shift=ranks // 2)
    mean = sum(entry.bytes for entry in manifest.files.values()) / ranks
    notes = sum(path.stat().st_size for path in (folder / f"notes-{ranks}-{listed}").iterdir())
    return {
        "part": posted - begin,
        "merge": joined - posted,
        "read": read - before,
        "notes": notes,
        "manifest": len(data),
        "shares": sum(manifest.files[name].bytes for name in share) / mean,
        "looks": ranks / longest_pause(ranks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", default="8,64,256,1024")
    worlds = [int(ranks) for ranks in parser.parse_args().ranks.split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        measure(2, Path(folder), listed=False)  # imports, and the first calls
        for ranks in worlds:
            row: dict[str, Any] = {"ranks": ranks, **measure(ranks, Path(folder), listed=False)}
            if ranks <= MOST_LISTED:
                listed = measure(ranks, Path(folder), listed=True)
                row["listed"] = sum(listed[part] for part in ("part", "merge", "read"))
                row["listed_manifest"] = listed["manifest"]
            rows.append(row)
            print_row(row)
    exponents = {name: exponent([row for row in rows if row.get(name)], name) for name in COLUMNS}
    print_row({"ranks": "exp", **exponents})
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"tensors": len(shapes()), "rows": rows, "exponents": exponents}, indent=1) + "\n"
    )


def exponent(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Of the power law through the first and the last row."""
    first, last = rows[0], rows[-1]
    if first is last:
        return math.nan
    return round(math.log(last[name] / first[name]) / math.log(last["ranks"] / first["ranks"]), 2)


def print_row(row: dict[str, Any]) -> None:
    shown = [f"{row.get(name, math.nan):>10.4g}" for name in COLUMNS]
    print(f"{row['ranks']:>6}", *shown, flush=True)


if __name__ == "__main__":
    print(f"{'ranks':>6}", *(f"{name:>10}" for name in COLUMNS))
    main()
