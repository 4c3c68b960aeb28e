"""What a checkpoint costs rank 0 and another rank besides its tensors' bytes, for 8 to 16,384 ranks.

`python bench/scale/checkpoint.py [--ranks N,N,…]`: the weights and moments of a 7B decoder (873 tensors) over
ZeRO shards. The ranks hold no weights: each describes its pieces as a save does and posts its part as a note
in a folder, and rank 0 joins the parts. CPU seconds, and bytes written or read:

    part     a rank describes what it wrote, and posts that
    merge    rank 0 reads all parts, joins them, checks that they tile every tensor, and encodes the manifest
    read     a rank reads the manifest, and finds the pieces that it needs, and the rows of their files
    share    a rank finds which files it reads again; rank 0 also reads the whole table of files, and the
             other ranks' answers
    peak     memory at its highest while the manifest is read, in bytes

`rows`: pieces are rows, as FSDP cuts. `flat`: parts of flattened tensors, as DeepSpeed's ZeRO-3 cuts.
`groups`: equal parts of one vector of all parameters, as DeepSpeed's ZeRO-1 and 2 cut. `listed`: every
piece is listed, as in version 1 of the manifest.

`shares` is rank 0's part of a verification over the mean of all ranks, in bytes, and `looks` how often a
second all nodes together look for a note while they wait for a commit. Of the ranks that hold pieces of the
same tensors one describes them; the others' notes differ by their numbers. The last columns have exponents of
the power law from the first number of ranks to 1,024, and from there to the last. Writes
bench/results/scale/checkpoint.json.
"""

import argparse
import json
import math
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import torch

from parallel.deepspeed_engine.master_slice import MasterSlice
from parallel.engine import Chunk
from parallel.layout.cuts import shard_rows
from parallel.layout.flat import chunk_bounds
from trainer.checkpoint.description import described
from trainer.checkpoint.folder import check_file
from trainer.checkpoint.manifest import MANIFEST, Manifest, encode, read_manifest
from trainer.checkpoint.merge import Part, decode_table, encode_table, merge
from trainer.checkpoint.pieces.files import TABLE, FileEntry, Listed
from trainer.checkpoint.saving.attempt import longest_pause
from trainer.checkpoint.saving.board import FolderBoard

RESULTS = Path(__file__).parents[1] / "results/scale/checkpoint.json"
STATES = ("model", "optim.exp_avg", "optim.exp_avg_sq")
LAYERS, HIDDEN, KEYS, FFN, VOCAB = 32, 4096, 4096, 11008, 32000
KINDS = ("rows", "flat", "groups", "listed")
DIFFERENT = ("groups", "listed")  # in which another rank's note is not made of one rank's
MOST_LISTED = 256  # ranks of "listed"
KNEE = 1024  # ranks: exponents are given up to here, and from here on
RANKS_A_NODE = 8  # that look as one


def shapes() -> dict[str, tuple[int, ...]]:
    """Name → shape of each tensor of the checkpoint."""
    square, keys, wide = (HIDDEN, HIDDEN), (KEYS, HIDDEN), (FFN, HIDDEN)
    layer: dict[str, tuple[int, ...]] = {"q": square, "k": keys, "v": keys, "o": square}
    layer |= {"gate": wide, "up": wide, "down": (HIDDEN, FFN), "norm_1": (HIDDEN,), "norm_2": (HIDDEN,)}
    model = {f"blocks.{number}.{name}": shape for number in range(LAYERS) for name, shape in layer.items()}
    model |= {"embedding": (VOCAB, HIDDEN), "head": (VOCAB, HIDDEN), "norm": (HIDDEN,)}
    return {f"{kind}.{name}": shape for kind in STATES for name, shape in model.items()}


def chunks_of(rank: int, ranks: int, kind: str) -> list[Chunk]:
    """The rank's shards, without memory. kind: one of KINDS."""
    found: list[Chunk] = []
    elements = sum(math.prod(shape) for shape in shapes().values()) // len(STATES)
    first, run = shard_rows(elements, rank, ranks)
    at = 0  # in the vector of all parameters
    for name, shape in shapes().items():
        size = math.prod(shape)
        if kind == "groups":
            low, high = max(first - at, 0), min(first + run - at, size)
            begin, at = at, (at + size) % elements
            for block in chunk_bounds(shape, low, high):
                part, stretch = torch.empty(block.shape, device="meta"), (begin, -(-elements // ranks))
                found.append(Chunk(name, part, shape, block.offset, True, ((ranks,),), stretch))
            continue
        if kind == "flat":
            start, length = shard_rows(size, rank, ranks)
            flat = torch.empty(length, device="meta")
            found += MasterSlice(name, shape, start, flat, {}, owned=True, cuts=((ranks,),)).chunks()
            continue
        start, rows = shard_rows(shape[0], rank, ranks)
        if rows:
            parts = ((ranks,), *((1,),) * (len(shape) - 1)) if kind == "rows" else ()
            tensor = torch.empty((rows, *shape[1:]), device="meta")
            found.append(Chunk(name, tensor, shape, (start, *(0,) * (len(shape) - 1)), True, parts))
    return found


def part_of(rank: int, chunks: Sequence[Chunk]) -> Part:
    """What `store.write_part` returns; the file's size is that of the tensors."""
    name = f"rank-{rank:05d}.safetensors"
    size = sum(4 * chunk.tensor.numel() for chunk in chunks)
    return described(rank, [name], [chunks], {name: FileEntry(size, f"{rank:032x}")})


def stand_in(part: Part, rank: int) -> Part:
    """The part of another rank that holds pieces of the same tensors."""
    entries = {f"rank-{rank:05d}.safetensors": entry for entry in part.files.values()}
    return replace(
        part,
        files=entries,
        shares=tuple(replace(share, rank=rank, number=rank) for share in part.shares),
    )


def post(board: FolderBoard, rank: int, part: Part) -> int:
    """What `Attempt.publish` does; return the bytes."""
    written = 0
    for share in part.shares:
        if not board.has(f"table-{share.digest}") and board.claim(f"table-{share.digest}"):
            table = encode_table(share.table)
            board.post(f"table-{share.digest}", table)
            written += len(table)
    note = orjson.dumps(part.to_json())
    board.post(f"part-{rank:05d}", note)
    return written + len(note)


def describe_and_post(board: FolderBoard, rank: int, chunks: Sequence[Chunk]) -> int:
    """What a rank does once its files are written; return the bytes."""
    return post(board, rank, part_of(rank, chunks))


def least(action: Callable[[], Any]) -> float:
    """The least CPU seconds of three calls: other work on the machine slows one down."""
    times = [time.process_time()]
    for _ in range(3):
        action()
        times.append(time.process_time())
    return min(end - begin for begin, end in pairwise(times))


def join(board: FolderBoard, ranks: int) -> dict[str, bytes]:
    """What rank 0 does: notes → the manifest's file, and that of the table of files."""
    table = cache(lambda key: decode_table(board.read(f"table-{key}") or b""))
    notes = [board.read(f"part-{rank:05d}") or b"" for rank in range(ranks)]
    files, tensors = merge([Part.from_json(orjson.loads(note), table) for note in notes])
    return encode(Manifest(Listed(files), tensors, step=1, sequences=8))


def post_others(board: FolderBoard, ranks: int, kind: str) -> None:
    """The notes of all ranks but the first two."""
    alike: dict[tuple[bool, ...], Part] = {}
    sizes = sorted({math.prod(shape) if kind == "flat" else shape[0] for shape in shapes().values()})
    for rank in range(2, ranks):
        holds = tuple(shard_rows(size, rank, ranks)[1] > 0 for size in sizes)
        if kind in DIFFERENT or holds not in alike:
            alike[holds] = part_of(rank, chunks_of(rank, ranks, kind))
        post(board, rank, alike[holds] if kind in DIFFERENT else stand_in(alike[holds], rank))


def reading(folder: Path, chunks: Sequence[Chunk]) -> Manifest:
    """What a rank does that loads its pieces."""
    manifest = read_manifest(folder)
    for chunk in chunks:
        (stored,) = manifest.stored(chunk.name, chunk.offset, chunk.tensor.shape)
        assert stored.offset == chunk.offset, chunk.name
    return manifest


@contextmanager
def counted_rows() -> Iterator[list[int]]:
    """Collect the bytes of each read of rows of the table of files."""
    pread, sizes = os.pread, []

    def counted(descriptor: int, size: int, at: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, at)

    os.pread = counted
    try:
        yield sizes
    finally:
        os.pread = pread


def verification(board: FolderBoard, folder: Path, ranks: int) -> dict[str, float]:
    """How rank 0 and another rank share in reading a checkpoint again."""
    files = read_manifest(folder).files
    keys = [f"verified-{rank:05d}" for rank in range(1, ranks)]
    answer = orjson.dumps({"1": ""})
    for key in keys:
        board.post(key, answer)
    begin = time.process_time()
    with counted_rows() as rows:
        files.share_of(1, ranks, shift=ranks // 2)
    other = time.process_time()
    share = files.share_of(0, ranks, shift=ranks // 2)
    check_file(folder, TABLE, files[TABLE])
    assert not board.missing(keys)
    for key in keys:
        orjson.loads(board.read(key) or b"")
    return {
        "0.share": time.process_time() - other,
        "1.share": other - begin,
        "0.share_bytes": len(keys) * len(answer) + files[TABLE].bytes,
        "1.share_bytes": len(answer) + sum(rows),
        "shares": sum(files[name].bytes for name in share) * ranks / sum(one.bytes for one in files.values()),
    }


def measure(ranks: int, folder: Path, kind: str) -> dict[str, float]:
    """CPU seconds and bytes of one save and one read by so many ranks, of rank 0 and of rank 1."""
    board = FolderBoard(folder / f"notes-{ranks}-{kind}")
    found: dict[str, float] = {}
    post_others(board, ranks, kind)
    for rank in (1, 0):
        mine = chunks_of(rank, ranks, kind)
        describe = partial(describe_and_post, board, rank, mine)
        found[f"{rank}.part_bytes"] = describe()
        found[f"{rank}.part"] = least(describe)
    notes = sum(path.stat().st_size for path in (folder / f"notes-{ranks}-{kind}").iterdir())
    begin = time.process_time()
    data = join(board, ranks)
    found |= {"0.merge": time.process_time() - begin, "0.merge_bytes": notes}
    at = folder / f"manifest-{ranks}-{kind}"
    at.mkdir()
    for name, content in data.items():
        (at / name).write_bytes(content)
    mine = chunks_of(1, ranks, kind)
    with counted_rows() as rows:
        reading(at, mine)
    found |= {
        "1.read": least(partial(reading, at, mine)),
        "1.read_bytes": len(data[MANIFEST]) + sum(rows),
        "manifest_bytes": len(data[MANIFEST]),
        "table_bytes": len(data[TABLE]),
    }
    tracemalloc.start()
    reading(at, mine)
    found["1.peak"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (
        found | verification(board, at, ranks) | {"looks": -(-ranks // RANKS_A_NODE) / longest_pause(ranks)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", default="8,64,256,1024,4096,16384")
    worlds = [int(ranks) for ranks in parser.parse_args().ranks.split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        measure(4, Path(folder), "rows")  # imports, and the first calls
        for ranks in worlds:
            row: dict[str, Any] = {"ranks": ranks}
            for kind in KINDS if ranks <= MOST_LISTED else KINDS[:-1]:
                found = measure(ranks, Path(folder), kind)
                row |= {f"{kind}.{name}": value for name, value in found.items()}
            rows.append(row)
            print(json.dumps(row), flush=True)
    exponents = {
        "to the knee": exponents_of([row for row in rows if row["ranks"] <= KNEE]),
        "from the knee": exponents_of([row for row in rows if row["ranks"] >= KNEE]),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    results = {"tensors": len(shapes()), "knee": KNEE, "rows": rows, "exponents": exponents}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(rows, exponents))


def exponents_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of the power law through the first and the last row, of each figure."""
    if len(rows) < 2:
        return {}
    first, last = rows[0], rows[-1]
    return {
        name: round(math.log(last[name] / first[name]) / math.log(last["ranks"] / first["ranks"]), 2)
        for name in last
        if name in first and name != "ranks"
    }


def table(rows: Sequence[dict[str, Any]], exponents: dict[str, dict[str, float]]) -> str:
    """Markdown: a row a figure, a column a number of ranks; then the exponents."""
    named = [f"{row['ranks']:,} ranks" for row in rows] + [f"exponent {where}" for where in exponents]
    lines = ["| | " + " | ".join(named) + " |", "| --- " * (len(named) + 1) + "|"]
    for name in dict.fromkeys(name for row in rows for name in row if name != "ranks"):
        values = [f"{row[name]:,.4g}" if name in row else "" for row in rows]
        values += [f"{found[name]:.2f}" if name in found else "" for found in exponents.values()]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
