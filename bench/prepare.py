"""`prepare` against `tokenizers` alone: tokens a second of one core, interleaved; and memory.

    python bench/prepare.py [--megabytes 8] [--rounds 11] [--json FILE]

The reference is what nothing can beat: one process that has the texts in memory and asks the library for
their ids, one text at a time as a worker does (`encode_batch_fast` of one), and throws the ids away.
`prepare` reads the same texts from lines of JSON, tokenises them, writes, hashes and fsyncs shards, indexes,
data card and manifest. Times are CPU seconds of the process, which other work on the machine stretches less
than the clock; the two take turns, each first every other round, and the ratio is the median of the rounds'.
Memory is that of one worker at a quarter of the input and at four times of it: it must not grow. And with
one document of the whole input's size.
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

from data import tokenizer as tokenizers
from data.prepare import prepare
from data.recipe import Recipe
from data.tokenizer import Encoder

GOAL = 0.8


def texts(size_bytes: int) -> Iterator[str]:
    """Documents of about 4 kB, as web pages have, cut from the standard library's source files."""
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
    """The texts as lines of JSON."""
    with open(path, "w", encoding="utf-8") as file:
        for text in texts(size_bytes):
            file.write(json.dumps({"text": text}) + "\n")


def seconds_alone(path: Path, tokenizer: Path) -> tuple[float, int]:
    """(CPU seconds, tokens) of the library alone."""
    encode = Encoder(tokenizers.load(tokenizer))
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


def peak_megabytes(path: Path, tokenizer: Path, out: Path) -> float:
    """Peak memory of a `prepare` with cleaning and near-duplicate removal, in a process of its own."""
    command = [sys.executable, __file__, "--only-prepare", str(path), str(tokenizer), str(out)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def only_prepare(path: str, tokenizer: str, out: str) -> None:
    """The process that `peak_megabytes` starts; one worker, so its memory is a worker's."""
    recipe = Recipe(filters=["gopher_repetition"], deduplicate="near", shard_bytes=8 << 20)
    prepare([path], Path(out), tokenizer=tokenizer, workers=1, recipe=recipe, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Prints both rates, their ratio, and the memory, as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", help="write the report to this file")
    parser.add_argument("--only-prepare", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_prepare:
        only_prepare(*args.only_prepare)
        return
    with tempfile.TemporaryDirectory() as folder:
        base, tokenizer = Path(folder), Path(folder) / "tokenizer.json"
        write_jsonl(base / "in.jsonl", int(args.megabytes * 1e6))
        tokenizers.train("bpe", texts(4_000_000), 16_384).save(str(tokenizer))
        seconds_prepare(base / "in.jsonl", tokenizer, base / "warm")
        rates: dict[str, list[float]] = {"alone": [], "prepare": []}
        for turn in range(args.rounds):
            for name in sorted(rates, reverse=bool(turn % 2)):
                if name == "alone":
                    seconds, tokens = seconds_alone(base / "in.jsonl", tokenizer)
                else:
                    seconds, tokens = seconds_prepare(base / "in.jsonl", tokenizer, base / f"out{turn}")
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
            path, size = base / f"part{share}.jsonl", share * args.megabytes
            write_jsonl(path, int(size * 1e6))
            peak = peak_megabytes(path, tokenizer, base / f"memory{share}")
            report["peak_megabytes_of_a_worker"][f"{size:g} MB of text"] = round(peak)
        path = base / "one.txt"
        path.write_text("".join(texts(int(args.megabytes * 4e6))), encoding="utf-8")
        peak = peak_megabytes(path, tokenizer, base / "memory_one")
        report["peak_megabytes_of_a_worker"][f"one document of {4 * args.megabytes:g} MB"] = round(peak)
    print(json.dumps(report, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
