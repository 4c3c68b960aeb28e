"""What FSDP2 spends at a start on cutting a rank's parameters into shards: real tensors beside fake ones.

`python bench/scale/splitting.py [--shards N,N,…]`: the parameters that the last rank of tp 8 × pp 4 holds of
configs/8b.yaml before ZeRO cuts them (8 blocks, the norm and the head: 74 tensors, 1 GB), block by block
under `fully_shard`, over N shards of torch's fake backend. FSDP2 cuts each by torch.chunk into N views, keeps
one and copies it. CPU seconds of all, the least of three:

    real     tensors with memory, as in a run
    views    of that torch.chunk, measured alone
    fake     fake tensors, as `world.py` has them

The last row has the exponents of the power law from the first number of shards to the last. Writes
bench/results/scale/splitting.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from world import ROOT, exponent

from fake_world import fake_world

RESULTS = ROOT / "bench/results/scale/splitting.json"
REPEATS = 3
ATTENTION = [(512, 4096), (128, 4096), (128, 4096), (4096, 512), (4096,)]
FEED_FORWARD = [(1792, 4096), (1792, 4096), (4096, 1792), (4096,)]
GROUPS = [ATTENTION + FEED_FORWARD] * 8 + [[(4096,), (16032, 4096)]]


def modules() -> list[nn.Module]:
    """One for each group of parameters that FSDP2 gathers together."""
    found: list[nn.Module] = []
    for shapes in GROUPS:
        module = nn.Module()
        for number, shape in enumerate(shapes):
            module.register_parameter(f"w{number}", nn.Parameter(torch.empty(shape)))
        found.append(module)
    return found


def least(prepare: Callable[[], Any], action: Callable[[Any], None]) -> float:
    """The least CPU seconds of the action."""
    found = []
    for _ in range(REPEATS):
        given = prepare()
        begin = time.process_time()
        action(given)
        found.append(time.process_time() - begin)
    return min(found)


def measure(shards: int) -> dict[str, float]:
    """CPU seconds of one start, for the last of so many shards."""
    found: dict[str, float] = {"shards": shards}

    def cut(parts: list[nn.Module]) -> None:
        for parameter in (each for part in parts for each in part.parameters()):
            torch.chunk(parameter.detach(), shards)

    with fake_world(shards - 1, shards):
        mesh = init_device_mesh("cpu", (shards,))

        def wrap(parts: list[nn.Module]) -> None:
            for part in parts:
                fully_shard(part, mesh=mesh)

        for name, mode in (("real", nullcontext()), ("fake", FakeTensorMode())):
            with mode:
                found[name] = least(modules, wrap)
        found["views"] = least(modules, cut)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", default="8,64,512,2048")
    numbers = [int(shards) for shards in parser.parse_args().shards.split(",")]
    measure(2)  # imports, and the first calls
    rows = []
    for shards in numbers:
        rows.append(measure(shards))
        print(json.dumps(rows[-1]), flush=True)
    RESULTS.write_text(json.dumps({"parameters": sum(map(len, GROUPS)), "rows": rows}, indent=1) + "\n")
    print("| shards | real, CPU s | of these views | fake, CPU s |\n| --- | --- | --- | --- |")
    names = ("real", "views", "fake")
    for row in rows:
        print(f"| {row['shards']:,.0f} | " + " | ".join(f"{row[name]:.3g}" for name in names) + " |")
    powers = [f"{exponent(numbers, [row[name] for row in rows]):.2f}" for name in names]
    print("| exponent | " + " | ".join(powers) + " |")


if __name__ == "__main__":
    main()
