"""A rank of worlds of 128 to 16,384, without the other ranks: what its start costs, what it owns and sends.

`python bench/scale/world.py`: for each world, the first and the last rank are built in a process of their
own with torch's fake backend, which sends nothing, and fake tensors, which hold nothing: configs/8b.yaml on
tp 8 × pp 4 × data ranks. Timed by CPU time, part by part:

    layout   the config, and which rank is where
    plan     the objective, the model's plan, whether they fit the layout
    mesh     the process groups
    engine   the model cut, sharded and wrapped, and its optimiser; fake tensors make it slower than it is
    pieces   what of the model and the optimiser's state is on this rank, and which of it the rank saves
    manifest a checkpoint's manifest read, by so many ranks and of 873 tensors, and the rank's pieces found
    corpus   a corpus of 31,000 shards and 10⁹ documents opened, and a batch of 8 sequences read

`peak` is the highest memory of the process, with the 240 MiB of its imports.
Messages and bytes of a step are those of a small model with values, on tp 8 × 8 shards × replicas, ZeRO 3.
(With more shards than a matrix has rows on a tp rank FSDP2 sends the padding too: with tp 8 the 8B model's
queries have 512.)
A column's last row is its exponent: of the power law from a world to one of 128 times its size.

Writes bench/results/scale/world.json.
"""

import argparse
import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/helpers"))
RESULTS = ROOT / "bench/results/scale/world.json"
SHARDS = 31_000  # of 32,258 documents each
WORLDS = (128, 256, 1024, 4096, 16384)
SMALL = {"layers": 4, "hidden": 64, "heads": 8, "kv_heads": 8, "ffn_hidden": 128}


class Clock:
    """CPU seconds of the parts, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.process_time()

    def leave_out(self) -> None:
        """What came since the last part counts for none."""
        self._since = time.process_time()

    def done(self, part: str) -> None:
        now = time.process_time()
        self.seconds[part], self._since = now - self._since, now


def start(rank: int, world: int, checkpoint: Path, corpus: Path, *more: str) -> dict[str, Any]:
    """Build a rank's engine of the 8B model, read a manifest and open a corpus; return what that took, and
    what the rank holds. more: overrides of the config.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

    import parallel.build
    from fake_world import fake_world
    from parallel.layout.layout import resolve
    from parallel.world.runtime import Runtime
    from trainer.config import reading
    from trainer.objectives.context import ObjectiveContext
    from trainer.start.engine import make_engine

    before = _peak_mib()
    clock = Clock()
    overrides = (
        "parallel.tp=8", "parallel.pp=4", "parallel.compile=off", f"train.global_batch={world // 8}",
    )  # fmt: skip
    cfg = reading.load(str(ROOT / "configs/8b.yaml"), [*overrides, *more])
    layout = resolve(cfg.parallel, world)
    clock.done("layout")
    make_mesh = parallel.build.make_mesh
    groups: list[str] = []

    def with_values(*args: Any, **named: Any) -> Any:
        clock.done("plan")
        with unset_fake_temporarily():
            mesh = make_mesh(*args, **named)
        groups.extend(mesh.axes)
        clock.done("mesh")
        return mesh

    parallel.build.make_mesh = with_values
    context = ObjectiveContext(0, cfg.data.seq_len, cfg.model.vocab, 0, lambda: b"", cfg.model)
    with fake_world(rank, world), FakeTensorMode():
        engine = make_engine(cfg, Runtime(rank, world, rank % 8, torch.device("cpu")), layout, context)
        clock.done("engine")
        pieces = engine.chunks()
        clock.done("pieces")
    owned = [piece for piece in pieces if piece.owned]
    gc.collect()  # of the fake tensors, which a run does not have
    clock.leave_out()
    manifest_bytes = read_pieces(rank, world, checkpoint)
    clock.done("manifest")
    opened = open_corpus(corpus)
    clock.done("corpus")
    return {
        "cpu_seconds": clock.seconds,
        "mib": _peak_mib() - before,
        "peak_mib": _peak_mib(),
        "manifest_bytes": manifest_bytes,
        **opened,
        "groups": len(groups),
        "pieces": len(pieces),
        "owned_gb": sum(piece.tensor.numel() * 4 for piece in owned) / 1e9,
    }


def _peak_mib() -> float:
    """Not getrusage's, which has the parent's in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def read_pieces(rank: int, world: int, folder: Path) -> int:
    """Read the manifest in the folder and find this rank's pieces; return its bytes."""
    import checkpoint as parts

    from trainer.checkpoint.manifest import MANIFEST

    parts.reading(folder, parts.chunks_of(rank, world, "rows"))
    return (folder / MANIFEST).stat().st_size


def open_corpus(folder: Path) -> dict[str, int]:
    """Open a corpus and read a batch; return how many files were mapped, and bytes of those without text."""
    from common import mapped_file
    from data.config import DataConfig, Source
    from data.stream.stream import Stream

    sizes: dict[str, int] = {}
    map_bytes = mapped_file._map

    def counted(descriptor: int, path: Path) -> memoryview:
        view = map_bytes(descriptor, path)
        sizes[str(path)] = 0 if path.suffix == ".tar" else len(view)
        return view

    mapped_file._map = counted
    try:
        stream = Stream.open(DataConfig([Source(str(folder))], seq_len=2048), seed=0, global_batch=8)
        stream.read(range(8))
    finally:
        mapped_file._map = map_bytes
    return {"files": len(sizes), "index_bytes": sum(sizes.values())}


def written_manifest(folder: Path, world: int) -> Path:
    """A folder with the manifest of a checkpoint by so many ranks."""
    import checkpoint as parts

    parts.measure(world, folder, "rows")
    return folder / f"manifest-{world}-rows"


def written_corpus(folder: Path, shards: int) -> Path:
    """A corpus of so many shards, all links to one of 32,258 documents, with what its first start counted."""
    import corpora

    made = folder / "corpus"
    corpora.make_corpus(made, folder, corpora.make_shard(folder), shards)
    corpora.write_tables(made, shards)
    return made


def step(rank: int, world: int) -> dict[str, Any]:
    """Make one step of the small model; return messages and bytes sent, by axis."""
    from fake_world import fake_world
    from parallel.messages.comms import CommCounter
    from runs import Case, build, micro_batches

    case = Case(
        parallel={"tp": 8, "dp_shard": 8, "dp_replicate": world // 64, "zero": 3},
        model=SMALL,
        global_batch=world // 8,
    )
    with fake_world(rank, world):
        engine = build(case, rank, world)
        batches = micro_batches(case, 0, 0, engine.data_ranks)
        with CommCounter(engine.axes) as counter:
            engine.step(batches, lr=1e-3)
        axes = {axis: counter.of(axis) for axis in ("tp", "dp_shard", "dp_replicate", "world")}
        engine.close()
    return {axis: {"messages": sent.calls, "bytes": round(sent.sent_bytes)} for axis, sent in axes.items()}


def exponent(worlds: list[int], values: list[float]) -> float:
    """Of the power law that goes through the first and the last value."""
    if min(values[0], values[-1]) <= 0:
        return 0.0
    return math.log(values[-1] / values[0]) / math.log(worlds[-1] / worlds[0])


def table(measured: list[dict[str, Any]]) -> str:
    """Markdown: a row a world, the larger of its two ranks; then the exponents."""
    parts = list(measured[0]["cpu_seconds"])
    columns = {
        **{f"{part}, CPU s": [row["cpu_seconds"][part] for row in measured] for part in parts},
        "start, CPU s": [sum(row["cpu_seconds"].values()) for row in measured],
        "MiB": [row["mib"] for row in measured],
        "peak, MiB": [row["peak_mib"] for row in measured],
        "manifest, kB": [row["manifest_bytes"] / 1e3 for row in measured],
        "files": [row["files"] for row in measured],
        "groups": [row["groups"] for row in measured],
        "pieces": [row["pieces"] for row in measured],
        "saves, GB": [row["owned_gb"] for row in measured],
        **{
            f"{axis}, {unit}": [row["step"][axis][unit] for row in measured]
            for axis in measured[0]["step"]
            for unit in ("messages", "bytes")
        },
    }
    worlds = [row["world"] for row in measured]
    lines = ["| ranks | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for at, world in enumerate(worlds):
        lines.append(
            f"| {world:,} | " + " | ".join(f"{values[at]:.4g}" for values in columns.values()) + " |"
        )
    powers = [f"{exponent(worlds, values):.2f}" for values in columns.values()]
    return "\n".join([*lines, "| exponent | " + " | ".join(powers) + " |"])


def larger(one: Any, other: Any) -> Any:
    """The larger of two figures, or of each figure of two records."""
    if isinstance(one, dict):
        return {key: larger(one[key], other[key]) for key in one}
    return max(one, other)


def measure(world: int, scratch: Path, corpus: Path) -> dict[str, Any]:
    """Return the larger figures of the world's first and last rank."""
    found = []
    folders = ["--checkpoint", str(written_manifest(scratch, world)), "--corpus", str(corpus)]
    for rank in (0, world - 1):
        command = [sys.executable, __file__, "--rank", str(rank), "--world", str(world), *folders]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {"world": world, **larger(*found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rank", type=int, help="only this rank of --world; prints JSON")
    parser.add_argument("--world", type=int)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--corpus", type=Path)
    chosen = parser.parse_args()
    if chosen.rank is not None:
        found = start(chosen.rank, chosen.world, chosen.checkpoint, chosen.corpus)
        print(json.dumps({**found, "step": step(chosen.rank, chosen.world)}))
        return
    with tempfile.TemporaryDirectory(prefix="scale-world-") as scratch:
        corpus = written_corpus(Path(scratch), SHARDS)
        measured = []
        for world in WORLDS:
            measured.append(measure(world, Path(scratch), corpus))
            print(json.dumps(measured[-1]), flush=True)
    RESULTS.write_text(json.dumps(measured, indent=1) + "\n")
    print(table(measured))


if __name__ == "__main__":
    main()
