"""A save of a 70B model by 1,024 ranks, modelled from measured parts: what each rank does, and rank 0 more.

`python bench/scale/save.py [--ranks N] [--gigabytes-per-second B]`: weights and two moments in float32, so 12
bytes a parameter, over ZeRO shards. Bytes are counted, by the code that a save runs. Seconds of the processor
are measured on this machine, a core's: writing and hashing per byte, and the parts of `checkpoint.py` for so
many ranks. A byte that is written or read moves at B GB/s a rank, 1 by default: assumed, not measured.
A rank's work is the sum of all its seconds, as if nothing overlapped.

    names    what the ranks sum to know that they hold the checkpoint's tensors: a number
    write    this rank's pieces: hashed, looked at for NaN, written
    part     the rank's part of the manifest, described and posted
    merge    rank 0: all parts → the manifest, written; the others: none
    verify   another rank's files read again and hashed; the manifest read, the answers gathered by rank 0

Writes bench/results/scale/save.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import checkpoint as parts
import torch

from parallel.engine import Chunk
from trainer.checkpoint.folder import hash_file
from trainer.checkpoint.store import write_part

RESULTS = Path(__file__).parents[1] / "results/scale/save.json"
LLAMA_70B = {"LAYERS": 80, "HIDDEN": 8192, "KEYS": 1024, "FFN": 28672, "VOCAB": 128_256}
SAMPLE_BYTES = 256 << 20
NUMBER_BYTES = 8  # of the number of elements that the ranks sum at a resume


def costs(folder: Path) -> dict[str, float]:
    """CPU seconds a byte: of writing pieces, and of reading them again."""
    tensor = torch.randn(SAMPLE_BYTES // 4)
    chunk = Chunk("w", tensor, tuple(tensor.shape), (0,), True)
    found = []
    for number in range(3):
        at = folder / f"sample-{number}"
        at.mkdir()
        begin = time.process_time()
        part = write_part(at, 0, [chunk])
        written = time.process_time()
        for name in part.files:
            hash_file(at / name)
        found.append((written - begin, time.process_time() - written))
    return {
        "write": min(write for write, _ in found) / SAMPLE_BYTES,
        "read": min(read for _, read in found) / SAMPLE_BYTES,
    }


def written_bytes(ranks: int) -> list[int]:
    """Of the tensors' bytes, what each rank writes."""
    found = [0] * ranks
    for shape in parts.shapes().values():
        row = 4 * torch.Size(shape[1:]).numel()
        for rank in range(ranks):
            found[rank] += row * parts.shard_rows(shape[0], rank, ranks)[1]
    return found


def work(ranks: int, host: dict[str, float], cost: dict[str, float], bandwidth: float) -> dict[str, Any]:
    """Bytes and seconds of rank 0, of rank 1 and of the mean rank, by part.

    host: as `checkpoint.measure` gives for so many ranks.
    cost: CPU seconds a byte of `write` and `read`.
    bandwidth: bytes a second of one rank.
    """
    own = written_bytes(ranks)
    mean = sum(own) / ranks
    # A rank reads what the rank half the world further on wrote.
    verified = {rank: own[(rank + ranks // 2) % ranks] for rank in (0, 1)}
    found: dict[str, Any] = {}
    for rank in (0, 1):
        size = {
            "names": NUMBER_BYTES,
            "write": own[rank],
            "part": host[f"{rank}.part_bytes"],
            "merge": host["0.merge_bytes"] + host["1.read_bytes"] if rank == 0 else 0,
            "verify": verified[rank] + host["1.read_bytes"] + host[f"{rank}.share_bytes"],
        }
        processor = {
            "names": 0.0,
            "write": own[rank] * cost["write"],
            "part": host[f"{rank}.part"],
            "merge": host["0.merge"] if rank == 0 else 0.0,
            "verify": verified[rank] * cost["read"] + host["1.read"] + host[f"{rank}.share"],
        }
        seconds = {name: processor[name] + size[name] / bandwidth for name in size}
        found[f"rank {rank}"] = {"bytes": size, "seconds": seconds}
    totals = [sum(found[f"rank {rank}"]["seconds"].values()) for rank in (0, 1)]
    # The tensors' bytes of the other ranks differ from rank 1's; all else is alike.
    others = totals[1] + (mean - own[1]) * (cost["write"] + cost["read"] + 2 / bandwidth)
    found["rank 0's share"] = totals[0] / ((totals[0] + (ranks - 1) * others) / ranks)
    found["beside tensors"] = 1 - (own[0] + verified[0]) / sum(found["rank 0"]["bytes"].values())
    return {"ranks": ranks, "tensor_bytes": sum(own), "largest_of_mean": max(own) / mean, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--gigabytes-per-second", type=float, default=1.0)
    chosen = parser.parse_args()
    vars(parts).update(LLAMA_70B)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts.measure(4, folder, "rows")  # imports, and the first calls
        cost, host = costs(folder), parts.measure(chosen.ranks, folder, "rows")
    found = work(chosen.ranks, host, cost, 1e9 * chosen.gigabytes_per_second)
    found["cpu_seconds_a_byte"], found["gigabytes_per_second"] = cost, chosen.gigabytes_per_second
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
