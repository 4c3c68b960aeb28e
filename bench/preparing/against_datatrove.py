"""`prepare` against datatrove, the same steps on the same documents and machine: documents a CPU second.

    python -m venv /tmp/datatrove
    /tmp/datatrove/bin/pip install datatrove==0.10.1 orjson spacy nltk "xxhash<4" tokenizers
    nice -n -10 python bench/preparing/against_datatrove.py --datatrove /tmp/datatrove/bin/python

Four cases: read lines of JSON and tokenise ("plain"); with Gopher's rules of quality and repetition between
("filters"); without exact duplicates ("exact"); with Gopher's rules and without near duplicates ("near":
MinHash of 5-grams, 18 bands of 7 rows in both). datatrove has an environment of its own, since it may want
other versions of some packages. Each run is a process of its own with one worker, counted once everything is
imported; `prepare` also hashes its shards and draws a data card, which is counted. The two alternate, each
first in every other round; ratios are of CPU seconds of all processes (median, least and most of the rounds)
and of seconds by the clock, which other work on the machine disturbs: hence the `nice`, and the machine's
load averages over the last minute, one before each round. The texts are docstrings of installed packages, a
fifth of them copies and a tenth near copies of others. Which documents are left differs in part, as words are
split by other rules and datatrove does not compare the pairs that share a band.

Writes bench/results/preparing/against_datatrove.json.
"""

import argparse
import ast
import json
import os
import random
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
from data.tokenizer import training

RESULTS = Path(__file__).parents[1] / "results" / "preparing" / "against_datatrove.json"
FILTERS = ["gopher_quality", "gopher_repetition"]
CASES = {
    "plain": Recipe(),
    "filters": Recipe(filters=FILTERS),
    "exact": Recipe(deduplicate="exact"),
    "near": Recipe(filters=FILTERS, deduplicate="near"),
}
FILES = 4


def docstrings() -> list[str]:
    """Paragraphs of docstrings of what is installed."""
    folders = [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]]
    named = ("numpy",)
    sources = sorted(Path(folders[0]).glob("*.py"))
    sources += sorted(path for name in named for path in (Path(folders[1]) / name).rglob("*.py"))
    found: set[str] = set()
    for source in sources:
        try:
            tree = ast.parse(source.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                found.add(ast.get_docstring(node) or "")
    return sorted(text for text in found if len(text) > 200)


def texts(size_bytes: int, of: list[str]) -> Iterator[str]:
    """Yield documents of about 4 kB; a fifth are copies of earlier ones, a tenth copies with another end."""
    rng, made, earlier = random.Random(0), 0, []
    while made < size_bytes:
        kind = rng.random() if earlier else 1.0
        if kind < 0.3:
            text = rng.choice(earlier)
            if kind < 0.1:
                text = text[: len(text) * 97 // 100] + " " + rng.choice(of)[:60]
        else:
            wanted, text = rng.expovariate(1 / 4000) + 100, ""
            while len(text) < wanted:
                text += rng.choice(of) + "\n\n"
            earlier.append(text)
        made += len(text)
        yield text


def in_child(case: str, on: str, sources: str, tokenizer: str, out: str) -> None:
    """Print (CPU seconds, seconds by the clock, documents read, documents written) of one `prepare`."""
    import matplotlib.figure  # noqa: F401 (what prepare imports late)
    import rensa  # noqa: F401
    import webdataset  # noqa: F401

    before, clock = os.times(), time.perf_counter()
    given: dict[str, Any] = {"tokenizer": tokenizer, "workers": 1, "recipe": CASES[case], "progress": False}
    report = prepare([sources], Path(out), on=on, **given)
    after = os.times()
    seconds = sum(after[:4]) - sum(before[:4])
    print(seconds, time.perf_counter() - clock, report.counts["read"][0], report.train.documents)


def numbers(command: list[str]) -> list[float]:
    """The numbers that a process prints. One thread for the tokenizer in each."""
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return [float(word) for word in ran.stdout.split()[-4:]]


def median(values: list[float]) -> float:
    """The median, to three places."""
    return round(statistics.median(values), 3)


def main() -> None:
    """Print the rates and their ratios as JSON, and store them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datatrove", help="a Python that has datatrove")
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="the others' figures are kept")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        in_child(*args.child)
        return
    report = json.loads(RESULTS.read_bytes()) if RESULTS.exists() else {"cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        tokenizer, sources = str(base / "tokenizer.json"), base / "sources"
        sources.mkdir()
        of = docstrings()
        training.train("bpe", texts(4_000_000, of), 16_384).save(tokenizer)
        files = [open(sources / f"{number}.jsonl", "w", encoding="utf-8") for number in range(FILES)]  # noqa: SIM115
        for number, text in enumerate(texts(int(args.megabytes * 1e6), of)):
            files[number % FILES].write(json.dumps({"text": text}) + "\n")
        for file in files:
            file.close()
        theirs = str(Path(__file__).with_name("datatrove_steps.py"))
        for case in args.cases:
            seen: dict[str, list[list[float]]] = {"prepare": [], "datatrove": []}
            loads = []
            for turn in range(args.rounds):
                loads.append(round(os.getloadavg()[0], 1))
                for name in sorted(seen, reverse=bool(turn % 2)):
                    out = str(base / f"{case}-{name}-{turn}")
                    if name == "prepare":
                        own = [sys.executable, __file__, "--child", case, "local"]
                        command = [*own, str(sources), tokenizer, out]
                    else:
                        command = [args.datatrove, theirs, case, str(sources), tokenizer, out]
                    seen[name].append(numbers(command))
            pairs = list(zip(seen["prepare"], seen["datatrove"]))
            report["cases"][case] = {
                "machine": f"CPU, {os.cpu_count()} cores",
                "nice": os.nice(0),
                "load_averages": loads,
                "rounds": args.rounds,
                "megabytes": args.megabytes,
                "documents": int(pairs[0][0][2]),
                "documents_left": {name: int(runs[0][3]) for name, runs in seen.items()},
                "documents_per_cpu_second": {
                    name: median([run[2] / run[0] for run in runs]) for name, runs in seen.items()
                },
            }
            for place, time_of in enumerate(("cpu", "clock")):
                ratios = [theirs[place] / ours[place] for ours, theirs in pairs]
                report["cases"][case][f"ratio_of_{time_of}_time"] = median(ratios)
                least_and_most = [round(min(ratios), 3), round(max(ratios), 3)]
                report["cases"][case][f"least_and_most_of_{time_of}_time"] = least_and_most
            print(case, json.dumps(report["cases"][case]), flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
