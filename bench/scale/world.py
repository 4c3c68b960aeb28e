"""A rank of worlds of 128 to 16,384, without the other ranks: what its start costs, what it owns and sends.

`python bench/scale/world.py`: for each world, the first and the last rank are built in a process of their
own with torch's fake backend, which sends nothing, and fake tensors, which hold nothing: configs/8b.yaml on
tp 8 × pp 4 × data ranks. Timed by CPU time, part by part:

    layout   the config, and which rank is where
    plan     the objective, the model's plan, whether they fit the layout
    mesh     the process groups
    engine   the model cut, sharded and wrapped, and its optimiser; fake tensors make it slower than it is
    pieces   what of the model and the optimiser's state is on this rank, and which of it the rank saves

Messages and bytes of a step are those of a small model with values, on tp 8 × 8 shards × replicas, ZeRO 3.
(With more shards than a matrix has rows on a tp rank FSDP2 sends the padding too: with tp 8 the 8B model's
queries have 512.)
A column's last row is its exponent: of the power law from a world to one of 128 times its size.

Writes bench/results/scale/world.json.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/helpers"))
RESULTS = ROOT / "bench/results/scale/world.json"
WORLDS = (128, 256, 1024, 4096, 16384)
SMALL = {"layers": 4, "hidden": 64, "heads": 8, "kv_heads": 8, "ffn_hidden": 128}


class Clock:
    """CPU seconds of the parts, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.process_time()

    def done(self, part: str) -> None:
        now = time.process_time()
        self.seconds[part], self._since = now - self._since, now


def start(rank: int, world: int) -> dict[str, Any]:
    """Build a rank's engine of the 8B model; return what that took, and what the rank holds."""
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
    cfg = reading.load(str(ROOT / "configs/8b.yaml"), list(overrides))
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
    return {
        "cpu_seconds": clock.seconds,
        "mib": _peak_mib() - before,
        "groups": len(groups),
        "pieces": len(pieces),
        "owned_gb": sum(piece.tensor.numel() * 4 for piece in owned) / 1e9,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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
        "MiB": [row["mib"] for row in measured],
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


def measure(world: int) -> dict[str, Any]:
    """Return the larger figures of the world's first and last rank."""
    found = []
    for rank in (0, world - 1):
        command = [sys.executable, __file__, "--rank", str(rank), "--world", str(world)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {"world": world, **larger(*found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rank", type=int, help="only this rank of --world; prints JSON")
    parser.add_argument("--world", type=int)
    chosen = parser.parse_args()
    if chosen.rank is not None:
        print(json.dumps({**start(chosen.rank, chosen.world), "step": step(chosen.rank, chosen.world)}))
        return
    measured = [measure(world) for world in WORLDS]
    RESULTS.write_text(json.dumps(measured, indent=1) + "\n")
    print(table(measured))


if __name__ == "__main__":
    main()
