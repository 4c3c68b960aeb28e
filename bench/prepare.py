"""`prepare` against `tokenizers` alone: tokens a second of one core, interleaved; and memory.

    python bench/prepare.py [--megabytes 24] [--rounds 9]

The reference is an upper bound: one process that has the texts in memory, has the library encode them one
text at a time, as a worker does (`encode_batch_fast` of one, the fastest call on one thread: batches of
hundreds are slower), and drops the ids. `prepare` reads the same texts from lines of JSON, tokenises them,
writes, hashes and fsyncs shards, indexes, data card and manifest. Each run is a process of its own, as in
real use: the heap that an earlier run has left slows the next run's tokenizer by up to a fifth. Both have
imported the same modules and loaded a tokenizer. Times are CPU seconds of the process, which other work on
the machine changes less than wall-clock time. The two alternate, each first in every other round, and the
ratio is the median over the rounds.

Memory is that of one worker with 2, 8 and 32 MB of text, which must not grow, and with one document of 32 MB.
Writes bench/results/prepare.json.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.tokenizer import loading, training
from data.tokenizer.encoder import Encoder

GOAL = 0.8
RESULTS = Path(__file__).parent / "results" / "prepare.json"


def texts(size_bytes: int) -> Iterator[str]:
    """Yield documents of about 4 kB, as web pages have, cut from the standard library's sources."""
    rng = random.Random(0)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    made = 0
    while made < size_bytes:
        whole = rng.choice(sources).read_text(encoding="utf-8", errors="replace")
        at = rng.randrange(max(1, len(whole) - 100))
        text = whole[at : at + int(rng.expovariate(1 / 4000)) + 100]
        made += len(text)
        yield text


def write_jsonl(path: Path, size_bytes: int) -> None:
    """Write the texts as lines of JSON."""
    with open(path, "w", encoding="utf-8") as file:
        for text in texts(size_bytes):
            file.write(json.dumps({"text": text}) + "\n")


def seconds_alone(path: Path, tokenizer: Path) -> tuple[float, int]:
    """(CPU seconds, tokens) of the library alone."""
    encode = Encoder(loading.load(tokenizer))
    with open(path, encoding="utf-8") as file:
        loaded = [json.loads(line)["text"] for line in file]
    began = time.process_time()
    tokens = sum(
        len(encode.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids) for text in loaded
    )
    return time.process_time() - began, tokens


def seconds_prepare(path: Path, tokenizer: Path, out: Path) -> tuple[float, int]:
    """(CPU seconds, tokens) of `prepare` in one process."""
    began = time.process_time()
    report = prepare([str(path)], out, tokenizer=tokenizer, workers=1, progress=False)
    return time.process_time() - began, report.train.tokens


def child(mode: str, *args: Path) -> list[float]:
    """The numbers that `in_child` prints, run in a process of its own."""
    command = [sys.executable, __file__, "--child", mode, *map(str, args)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in ran.stdout.split()]


def in_child(mode: str, path: str, tokenizer: str, out: str) -> None:
    """Print (CPU seconds, tokens) of one run; for the mode "memory" the peak megabytes of a run with cleaning
    and near-duplicate removal, in this process, so that its memory is a worker's.
    """
    if mode == "memory":
        recipe = Recipe(filters=["gopher_repetition"], deduplicate="near", shard_bytes=8 << 20)
        prepare([path], Path(out), tokenizer=tokenizer, workers=1, recipe=recipe, progress=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    import matplotlib.figure  # noqa: F401 (what prepare imports late)
    import webdataset  # noqa: F401

    if mode == "alone":
        print(*seconds_alone(Path(path), Path(tokenizer)))
    else:
        print(*seconds_prepare(Path(path), Path(tokenizer), Path(out)))


def main() -> None:
    """Print both rates, their ratio and the memory as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        in_child(*args.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        base, tokenizer = Path(folder), Path(folder) / "tokenizer.json"
        write_jsonl(base / "in.jsonl", int(args.megabytes * 1e6))
        training.train("bpe", texts(4_000_000), 16_384).save(str(tokenizer))
        rates: dict[str, list[float]] = {"alone": [], "prepare": []}
        for turn in range(args.rounds):
            for name in sorted(rates, reverse=bool(turn % 2)):
                seconds, tokens = child(name, base / "in.jsonl", tokenizer, base / f"out{turn}")
                rates[name].append(tokens / seconds)
        ratios = sorted(ours / alone for ours, alone in zip(rates["prepare"], rates["alone"]))
        report: dict[str, Any] = {
            "machine": f"CPU, {os.cpu_count()} cores",
            "megabytes": args.megabytes,
            "rounds": args.rounds,
            "million_tokens_per_core_second": {
                name: round(statistics.median(values) / 1e6, 3) for name, values in rates.items()
            },
            "ratio": round(statistics.median(ratios), 3),
            "ratio_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
            "goal": GOAL,
            "peak_megabytes_of_a_worker": {},
        }
        for share in (0.25, 1.0, 4.0):
            path, size = base / f"part{share}.jsonl", share * 8
            write_jsonl(path, int(size * 1e6))
            (peak,) = child("memory", path, tokenizer, base / f"memory{share}")
            report["peak_megabytes_of_a_worker"][f"{size:g} MB of text"] = round(peak)
        path = base / "one.txt"
        path.write_text("".join(texts(int(32e6))), encoding="utf-8")
        (peak,) = child("memory", path, tokenizer, base / "memory_one")
        report["peak_megabytes_of_a_worker"]["one document of 32 MB"] = round(peak)
    print(json.dumps(report, indent=1))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
