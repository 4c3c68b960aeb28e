"""A run's start on corpora of many shards: seconds and memory to the first batch, and what is opened.

`python bench/scale/corpora.py --before TREE`: corpora of 310, 3,100 and 31,000 shards of 32,258 documents,
the largest of 10⁹ documents. Their shards are hard links to one, so they take 150 MB. Each start is a process
of its own that opens the stream and reads a batch of 8 sequences; seconds are the CPU's, without imports.
TREE: a checkout of an earlier commit, whose code opens the same corpora in turn. There `best_fit` is measured
up to BEST_FIT_SHARDS shards, for it packs every block. Without TREE its figures of the last time stay.

Writes bench/results/scale/corpora.json.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[2]
RESULTS = TREE / "bench" / "results" / "scale" / "corpora.json"
SHARDS = (310, 3_100, 31_000)
DOCUMENTS, BLOCK = 32_258, 4096
SEQ_LEN, BATCH = 2048, 8
BEST_FIT_SHARDS = 310
RANKS = 1000  # of which one's share of the counting is measured
# The program that is measured; argv: corpus, packing, position. It runs with the code of either tree.
START = f"""
import json, sys, time
from common import mapped_file
from data.config import DataConfig, Source
from data.stream.stream import Stream

opened = dict(files=0, bytes=0)
map_bytes = mapped_file._map
def counting(descriptor, path):
    view = map_bytes(descriptor, path)
    opened["files"] += 1
    opened["bytes"] += len(view) * (not str(path).endswith(".tar"))
    return view
mapped_file._map = counting
def memory():  # getrusage's figure has that of the parent in it
    lines = open("/proc/self/status").read().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024, 1)
corpus, packing, position = sys.argv[1:]
imported, begin = memory(), time.process_time()
cfg = DataConfig([Source(corpus)], seq_len={SEQ_LEN}, packing=packing)
stream = Stream.open(cfg, seed=0, global_batch={BATCH})
open_seconds, files = time.process_time() - begin, opened["files"]
rows = stream.read(range(int(position), int(position) + {BATCH}))
print(json.dumps(dict(
    open_seconds=open_seconds,
    batch_seconds=time.process_time() - begin - open_seconds,
    seconds=time.process_time() - begin,
    peak_mb=memory(),
    imports_mb=imported,
    files_to_open=files,
    files=opened["files"],
    index_and_table_mb=opened["bytes"] / 1e6,
    check=int(rows.tokens.sum()),
    sequences=stream.sources[0].sequences,
)))
"""
# One rank's share of counting what no table tells; argv: corpus, packing.
SHARE = f"""
import json, sys, time
from data.config import DataConfig, Source
from data.corpus.corpus import open_corpus
from data.stream.packing.counting import countings

cfg = DataConfig([Source(sys.argv[1])], seq_len={SEQ_LEN}, packing=sys.argv[2])
corpus = open_corpus(sys.argv[1], cfg)
(counting,) = countings([corpus], cfg)
begin = time.process_time()
counting.share(int(sys.argv[3]) // 2, int(sys.argv[3]))
print(json.dumps(dict(seconds=time.process_time() - begin)))
"""


def make_shard(folder: Path) -> Any:
    """Write the shard that all others are links to; return its manifest entry."""
    import numpy as np

    from data.corpus.shards import TokenShardWriter

    rng = np.random.default_rng(0)
    writer = TokenShardWriter(folder / "shard.tar", np.dtype("<u2"))
    lengths = np.minimum(rng.lognormal(5.0, 1.2, DOCUMENTS), 20_000).astype(int)
    for number, length in enumerate(lengths.tolist()):
        ids = rng.integers(1, 50_000, length)
        writer.add(f"{number:08d}", ids, 4 * length, {"path": "made"}, {})
    return writer.close()


def make_corpus(folder: Path, made: Path, entry: Any, shards: int) -> None:
    """Write a corpus of links to one shard."""
    from data.corpus.manifest import Manifest, TokenizerEntry, file_sha256, write_manifest

    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    entries = []
    for number in range(shards):
        name = f"shard-{number:06d}.tar"
        os.link(made / entry.file, folder / name)
        os.link(made / entry.index_file, folder / name.replace(".tar", ".idx.npy"))
        entries.append(replace(entry, file=name))
    tokenizer = TokenizerEntry("tokenizer.json", file_sha256(folder / "tokenizer.json"), 50_000, 0)
    write_manifest(folder, Manifest(tokenizer, "uint16", BLOCK, tuple(entries)))


def write_tables(folder: Path, shards: int) -> None:
    """Write what `prepare` and the first start with best_fit write: counted of one shard, all are alike."""
    import numpy as np

    from data.config import DataConfig, Source
    from data.corpus.corpus import open_corpus
    from data.corpus.listing.blocks import COUNTS
    from data.stream.packing.counting import Counting

    for packing in ("cut", "best_fit"):
        corpus = open_corpus(str(folder), DataConfig([Source(str(folder))]))
        counting = Counting(corpus, packing, SEQ_LEN)
        blocks, windows = counting.share(0, shards)
        counting.join(
            [
                (
                    None if blocks is None else {name: np.tile(blocks[name], shards) for name in COUNTS},
                    None if windows is None else np.tile(windows, shards),
                )
            ]
        )
        counting.keep()


def measured(tree: Path, program: str, *arguments: object) -> dict[str, Any]:
    """Run a program with the code of a tree; return the figures that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def exponent(found: dict[int, dict[str, Any]], key: str) -> float | None:
    """The slope of log figure over log shards, from the smallest to the largest corpus."""
    if len(found) < 2:
        return None
    least, most = min(found), max(found)
    return round(math.log(found[most][key] / found[least][key]) / math.log(most / least), 2)


def starts(folder: Path, shards: int, before: Path | None) -> dict[str, Any]:
    """The starts on one corpus, in turn: of the tree before, then the first and the second of this one."""
    made: dict[str, Any] = {}
    if before is not None:
        made["before, cut"] = measured(before, START, folder, "cut", 0)
        if shards <= BEST_FIT_SHARDS:
            made["before, best_fit"] = measured(before, START, folder, "best_fit", 0)
    ranks = max(1, RANKS * shards // max(SHARDS))
    for packing in ("cut", "best_fit"):
        share = measured(TREE, SHARE, folder, packing, ranks)
        made[f"a share of the counting, {packing}"] = {**share, "ranks": ranks}
    write_tables(folder, shards)
    for packing in ("cut", "best_fit"):
        for start in ("first", "second"):
            made[f"{start} start, {packing}"] = measured(TREE, START, folder, packing, 0)
    length = made["second start, cut"]["sequences"]
    for position in (length // 2, 3 * length):
        made[f"at sequence {position}"] = measured(TREE, START, folder, "cut", position)
    return made


def main() -> None:
    """Make the corpora, measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--shards", type=int, nargs="+", default=SHARDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    sys.path.insert(0, str(TREE))
    found: dict[int, dict[str, Any]] = {}
    last = json.loads(args.out.read_text())["starts"] if args.out.exists() and not args.before else {}
    with tempfile.TemporaryDirectory(prefix="scale-corpora-") as scratch:
        made = Path(scratch)
        entry = make_shard(made)
        for shards in args.shards:
            folder = made / f"corpus-{shards}"
            make_corpus(folder, made, entry, shards)
            kept = last.get(str(shards), {})
            found[shards] = {name: kept[name] for name in kept if name.startswith("before")}
            found[shards] |= starts(folder, shards, args.before)
            shutil.rmtree(folder)
            for name, figures in found[shards].items():
                print(f"{shards:>6} shards, {name}: {json.dumps(figures)}", flush=True)
    names = {name for figures in found.values() for name in figures if not name.startswith("at ")}
    slopes = {}
    for name in sorted(names):
        rows = {shards: figures[name] for shards, figures in found.items() if name in figures}
        slopes[name] = {
            key: exponent(rows, key)
            for key in ("seconds", "peak_mb", "files")
            if all(key in row for row in rows.values())
        }
    results = {
        "documents_a_shard": DOCUMENTS,
        "seq_len": SEQ_LEN,
        "starts": {str(shards): figures for shards, figures in found.items()},
        "exponents": slopes,
    }
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(slopes, indent=1))


if __name__ == "__main__":
    main()
