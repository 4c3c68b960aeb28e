"""Time from launch to the end of the first step, against the least that any such program needs.

`python bench/start.py`: `germinal train` on one process, until the first line of metrics.jsonl, and a script
that imports torch, makes a process group of one, and does one step of the same model with torch.optim.AdamW.
Whole processes, in turn. The corpus is the running Python's own library, prepared once.

Writes bench/results/start.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "start.json"
CONFIG = """
name: start
model: {kind: decoder, layers: 4, hidden: 64, heads: 4, vocab: 257}
data: {sources: [{path: corpus}], seq_len: 64}
optim: {lr: 1.0e-3}
train: {steps: 1, global_batch: 16, micro_batch: 16, log_every: 1}
checkpoint: {every: 0}
"""
BARE = """
import tempfile
import torch
import torch.distributed as dist
from trainer.models.build import build_model
from trainer.models.decoder.config import DecoderConfig

dist.init_process_group("gloo", store=dist.FileStore(tempfile.mktemp(), 1), rank=0, world_size=1)
model = build_model(DecoderConfig(layers=4, hidden=64, heads=4, kv_heads=4, vocab=257))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
tokens = torch.randint(257, (16, 64))
(model(tokens, targets=tokens).sum() / tokens.numel()).backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
print("step")
"""


def ours(folder: Path) -> float:
    """Return the seconds from launch to the first line of metrics."""
    run = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "trainer", str(folder / "start.yaml"), f"run_dir={run}"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() not in (None, 0):
            sys.exit("the run failed")
        time.sleep(0.002)
    took = time.perf_counter() - begin
    process.wait()
    return took


def bare(folder: Path) -> float:
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", BARE], cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"step":
            sys.exit("the bare step failed")
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "start.yaml").write_text(CONFIG)
        source = f"{sysconfig.get_paths()['stdlib']}/json"
        germinal = Path(sys.executable).with_name("germinal")
        prepare = [germinal, "prepare", source, "--tokenizer", "bytes", "--out", "corpus"]
        subprocess.run(prepare, cwd=folder, check=True, capture_output=True)
        pairs = []
        for number in range(args.rounds + 1):
            order = (ours, bare) if number % 2 else (bare, ours)
            took = {which: which(folder) for which in order}
            pairs.append((took[ours], took[bare]))
    pairs = pairs[1:]  # the first reads the files from the disk
    ratios = sorted(a / b for a, b in pairs)
    result = {
        "machine": f"CPU, {os.cpu_count()} cores",
        "ours_seconds": round(statistics.median(a for a, _ in pairs), 3),
        "bare_seconds": round(statistics.median(b for _, b in pairs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
    }
    print(json.dumps(result))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
