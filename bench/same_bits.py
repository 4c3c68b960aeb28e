"""Are two versions of this project equal to the last bit, over engines, layouts, precisions and data options?

    python -m bench.same_bits record before.json          # in a checkout of the one version
    python -m bench.same_bits record after.json           # in a checkout of the other, on the same machine
    python -m bench.same_bits compare before.json after.json

`record` makes two corpora and does every run of RUNS by the command line alone, in a folder that has the same
path for both versions. It writes the SHA-256 of what each left: the corpora's files; the metrics without what
was timed; the ledger; of each checkpoint its tensor files, and its state without the hash of the program.
`compare` names each that differs, and ends with 1 where one does. For a change that is to leave every result
as it was: before it, and after it.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(tempfile.gettempdir()) / "germinal-same-bits"
TIMED = ("tokens_per_second", "step_seconds", "peak_memory_bytes", "peak_rss_bytes", "mfu")
WORDS = [
    *("the", "a", "model", "token", "shard", "rank"),
    *("loss", "step", "of", "to", "über", "naïve", "数据", "once"),
]
STEPS = 6

MIXED = {
    "data.sources": [
        {"path": "corpus/train", "weight": 2, "name": "one", "max_epochs": 40},
        {"path": "other", "weight": 1, "name": "two"},
    ],
    "data.stages": [{"from_step": 3, "weights": {"one": 1, "two": 3}}],
}
MASKED = {"data.document_mask": True, "data.packing": "best_fit"}
DEEPSPEED = {"parallel.engine": "deepspeed"}

# name → starts of the run one after another: (ranks, settings).
RUNS: dict[str, list[tuple[int, dict[str, Any]]]] = {
    "one process": [(1, {})],
    "one process, bf16, masked": [(1, {"train.precision": "bf16", **MASKED})],
    "one process, mixture": [(1, {**MIXED, "data.temperature": 0.7})],
    "one process, muon, rounded state": [(1, {"optim.name": "muon", "optim.state_dtype": "bf16"})],
    "dp2 zero0": [(2, {"parallel.zero": 0, "parallel.dp_replicate": 2, "parallel.dp_shard": 1})],
    "dp2 zero1, fp16": [(2, {"parallel.zero": 1, "train.precision": "fp16"})],
    "dp2 zero1, mixture, masked": [(2, {"parallel.zero": 1, **MIXED, **MASKED})],
    "dp2 zero2, muon": [(2, {"parallel.zero": 2, "optim.name": "muon"})],
    "dp2 zero3, bf16": [(2, {"parallel.zero": 3, "train.precision": "bf16"})],
    "tp2": [(2, {"parallel.tp": 2})],
    "tp2, recompute selective, bf16": [
        (2, {"parallel.tp": 2, "parallel.recompute": "selective", "train.precision": "bf16"})
    ],
    "cp2, masked": [(2, {"parallel.cp": 2, **MASKED})],
    "pp2 1f1b, tied": [(2, {"parallel.pp": 2, "model.tie_embeddings": True})],
    "pp2 interleaved, recompute": [
        (2, {"parallel.pp": 2, "parallel.schedule": "interleaved_1f1b", "parallel.recompute": "full"})
    ],
    "pp2 zero bubble": [
        (2, {"parallel.pp": 2, "parallel.schedule": "interleaved_zero_bubble", "parallel.stages_per_rank": 2})
    ],
    "dp2 tp2 zero1, bf16": [(4, {"parallel.tp": 2, "parallel.zero": 1, "train.precision": "bf16"})],
    "pp2 tp2, masked": [(4, {"parallel.pp": 2, "parallel.tp": 2, **MASKED})],
    "dp2 pp2 zero3, gpipe": [(4, {"parallel.pp": 2, "parallel.zero": 3, "parallel.schedule": "gpipe"})],
    "dp2 cp2 zero2": [(4, {"parallel.cp": 2, "parallel.zero": 2})],
    "deepspeed zero1": [(2, {**DEEPSPEED, "parallel.zero": 1})],
    "deepspeed zero2, bf16": [(2, {**DEEPSPEED, "parallel.zero": 2, "train.precision": "bf16"})],
    "deepspeed zero3, offloaded": [
        (2, {**DEEPSPEED, "parallel.zero": 3, "parallel.offload_optimizer": "cpu"})
    ],
    "from dp2 zero1 to tp2 to one process": [
        (2, {"parallel.zero": 1, "train.steps": 2}),
        (2, {"parallel.tp": 2, "train.steps": 4}),
        (1, {}),
    ],
}


def germinal(*arguments: str) -> None:
    """Run one command of this checkout; RuntimeError with its last words where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [
        sys.executable,
        "-c",
        "import sys; from launch.entry import main; sys.exit(main())",
        *arguments,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"germinal {' '.join(arguments)}: exit code {done.returncode}: {done.stderr[-2000:]}"
        )


def make_corpora() -> None:
    """corpus/ out of JSON lines, cleaned and without duplicates; other/ out of text files and a table."""
    draw = random.Random(0)
    lines = [
        " ".join(draw.choice(WORDS) for _ in range(draw.choice((0, 3, 20, 90, 200)))) for _ in range(120)
    ]
    texts = FOLDER / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": line, "number": i}) + "\n" for i, line in enumerate(lines + lines[:9]))
    )
    (FOLDER / "files").mkdir()
    for number in range(30):
        text = "\n".join(draw.choice(WORDS) * draw.randint(1, 9) for _ in range(draw.randint(1, 60)))
        (FOLDER / f"files/{number:02}.txt").write_text(text)
    (FOLDER / "tables").mkdir()
    rows = "".join(f'{number},"{draw.choice(WORDS)}, ""quoted"" {number}"\n' for number in range(50))
    (FOLDER / "tables/rows.csv").write_text("id,text\n" + rows)
    plain = ["--tokenizer", "bytes", "--workers", "1"]
    near = ["--deduplicate", "near", "--normal-form", "NFC"]
    germinal("prepare", str(texts), "--out", str(FOLDER / "corpus"), "--heldout", "0.1", *near, *plain)
    both = [str(FOLDER / "files"), str(FOLDER / "tables")]
    germinal("prepare", *both, "--out", str(FOLDER / "other"), *plain)


def config_file(name: str, settings: dict[str, Any]) -> Path:
    """The run's config, with `settings` in it."""
    config: dict[str, Any] = {
        "name": name,
        "run_dir": str(FOLDER / name),
        "model": {"kind": "decoder", "layers": 4, "hidden": 32, "heads": 4, "kv_heads": 2, "vocab": 288},
        "data": {
            "sources": [{"path": "corpus/train"}],
            "heldout": [{"path": "corpus/heldout", "name": "held"}],
            "seq_len": 32,
            "ledger": True,
            "shuffle_blocks": 2,
        },
        "optim": {"lr": 1.0e-3, "schedule": "constant", "warmup_steps": 2},
        "train": {"steps": STEPS, "global_batch": 8, "micro_batch": 2, "eval_every": 3},
        "checkpoint": {"every": 2, "keep": 10},
    }
    for key, value in settings.items():
        section, _, last = key.partition(".")
        config.setdefault(section, {})[last] = value
    for part in ("sources", "heldout"):
        config["data"][part] = [{**one, "path": str(FOLDER / one["path"])} for one in config["data"][part]]
    path = FOLDER / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def left_by_corpus(folder: Path) -> dict[str, str]:
    """File → hash, of what a reader of the corpus sees."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in (".tar", ".npy", ".json") and ".prepare" not in path.parts
    )
    return {str(path.relative_to(FOLDER)): sha256(path.read_bytes()) for path in files}


def left_by_run(folder: Path) -> dict[str, str]:
    """What the run left → its hash."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
    ledger = sorted((folder / "ledger.jsonl").read_text().splitlines())  # of several ranks, in any order
    left = {"metrics": sha256(json.dumps(metrics).encode()), "ledger": sha256("\n".join(ledger).encode())}
    for path in sorted((folder / "checkpoints").glob("step-*/*")):
        name = f"{path.parent.name}/{path.name}"
        if path.suffix == ".safetensors":
            left[name] = sha256(path.read_bytes())
        elif path.name == "state.json":
            state = json.loads(path.read_text())
            del state["logs"], state["identity"]["software"]["code"]  # what was timed; the program's own hash
            left[name] = sha256(json.dumps(state, sort_keys=True).encode())
    return left


def record(out: str) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    make_corpora()
    found = {"corpora": {**left_by_corpus(FOLDER / "corpus"), **left_by_corpus(FOLDER / "other")}}
    for number, (name, starts) in enumerate(RUNS.items()):
        for ranks, settings in starts:
            config = config_file(f"run{number:02}", settings)
            germinal("train", str(config), "--nproc", str(ranks))
        found[name] = left_by_run(FOLDER / f"run{number:02}")
        print(f"{name}: {len(found[name])} hashes", flush=True)
        Path(out).write_text(json.dumps(found, indent=1))


def compare(before: str, after: str) -> int:
    """Print what differs; returns the exit code."""
    one, other = json.loads(Path(before).read_text()), json.loads(Path(after).read_text())
    wrong = 0
    for name in sorted({*one, *other}):
        mine, theirs = one.get(name, {}), other.get(name, {})
        off = sorted(part for part in {*mine, *theirs} if mine.get(part) != theirs.get(part))
        wrong += bool(off)
        print(f"{name}: {f'DIFFERS: {chr(44).join(off)}' if off else f'{len(mine)} hashes equal'}")
    return min(wrong, 1)


def main() -> int:
    match sys.argv[1:]:
        case ["record", out]:
            record(out)
            return 0
        case ["compare", before, after]:
            return compare(before, after)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main())
