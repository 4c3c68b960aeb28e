"""Whole runs for tests: a small corpus, configs, the real commands in processes of their own, and the files
that runs leave.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

GERMINAL = str(Path(sys.executable).with_name("germinal"))
ASCII = {
    **os.environ,
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}
"""Environment of a terminal that knows ASCII only."""
TIMES = (
    "tokens_per_second",
    "images_per_second",
    "step_seconds",
    "peak_memory_bytes",
    "peak_rss_bytes",
    "mfu",
)
WORDS = (
    "the",
    "a",
    "model",
    "token",
    "shard",
    "rank",
    "loss",
    "step",
    "stage",
    "batch",
    "reads",
    "splits",
    "of",
    "to",
)


def make_corpus(folder: Path, *, documents: int = 60, seed: int = 0) -> Path:
    """Make folder/corpus with train and heldout of made-up sentences, tokenised as bytes; return its path."""
    from data.prepare.prepare import prepare

    draw = random.Random(seed)
    texts = folder / "texts.jsonl"
    with texts.open("w") as out:
        for number in range(documents):
            # Very uneven lengths: blocks end in padded, masked sequences.
            words = [draw.choice(WORDS) for _ in range(draw.choice((3, 20, 90, 200)))]
            out.write(json.dumps({"text": f"{number} {' '.join(words)}"}) + "\n")
    prepare([str(texts)], folder / "corpus", tokenizer="bytes", heldout=0.1, workers=1, progress=False)
    return folder / "corpus"


def write_config(folder: Path, corpus: Path, **changes: Any) -> Path:
    """Write the config of a tiny run over `corpus`; `changes` are dotted keys with `__` for the dot."""
    config: dict[str, Any] = {
        "name": "run",
        "run_dir": str(folder / "run"),
        "model": {"kind": "decoder", "layers": 4, "hidden": 32, "heads": 4, "kv_heads": 2, "vocab": 288},
        "data": {
            "sources": [{"path": str(corpus / "train")}],
            "heldout": [{"path": str(corpus / "heldout"), "name": "made_up"}],
            "seq_len": 32,
            "ledger": True,
        },
        "optim": {"lr": 1.0e-3, "schedule": "cosine", "warmup_steps": 2},
        "train": {"steps": 12, "global_batch": 8, "micro_batch": 2, "eval_every": 6},
        "checkpoint": {"every": 4, "keep": 10},
    }
    for key, value in changes.items():
        section: Any = config
        *path, last = key.split("__")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    path_ = folder / "run.yaml"
    path_.write_text(yaml.safe_dump(config))
    return path_


def environment() -> dict[str, str]:
    """Return the environment of every command in a test: one thread a process and no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "COLUMNS": "200"}


def germinal(
    *arguments: object, timeout: float = 180.0, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a `germinal` command to its end."""
    command = [GERMINAL, *map(str, arguments)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=timeout, cwd=cwd, check=False
    )


def failure(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and message of a command that fails: one line on standard error and nothing else."""
    from launch import cli

    code = cli.main(arguments)
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return code, err


def train(config: Path, *overrides: str, nproc: int = 1, timeout: float = 180.0) -> None:
    """Train to the end; fail with the command's output if it does not exit with 0."""
    done = germinal("train", config, "--nproc", nproc, *overrides, timeout=timeout)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def train_here(config: Path, *overrides: str) -> bool:
    """Train in this process, which costs no start; errors come out as exceptions."""
    from parallel.world import runtime as runtimes
    from trainer.config import reading
    from trainer.run import assemble

    cfg = reading.load(config, overrides)
    with ExitStack() as stack:
        return assemble(cfg, runtimes.start(env={"OMP_NUM_THREADS": "1"}), stack)()


def meeting_place() -> dict[str, str]:
    """Return the variables with which ranks that are started by hand find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


@contextmanager
def by_hand(
    config: Path, *overrides: str, world: int = 2, own: Sequence[Mapping[str, str]] = ()
) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start ranks without a launcher; `own`: variables of each rank besides the common ones."""
    env = environment() | meeting_place() | {"WORLD_SIZE": str(world)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer", str(config), *overrides],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (dict(own[rank]) if own else {}),
            stderr=subprocess.PIPE,
            text=True,
            # A suite that a script runs in the background has SIGINT ignored, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )
        for rank in range(world)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def kill_when(
    command: Sequence[object],
    ready: Callable[[], bool],
    *,
    number: int = signal.SIGKILL,
    timeout: float = 120.0,
) -> int:
    """Start a command in its own process group and signal the whole group as soon as `ready`; its exit
    code.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, (
        f"the command ended by itself, with {process.returncode}, before it was killed"
    )
    os.killpg(process.pid, number)
    return process.wait(timeout=timeout)


def records(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file, without the keys that depend on the clock."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def whole_steps(path: Path) -> int:
    """Count the steps in a metrics file that may be written right now."""
    try:
        # By lines: of several sources, each has a loss of its own in it.
        return sum('"loss"' in line for line in path.read_text().splitlines())
    except FileNotFoundError:
        return 0


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in records(run / "events.jsonl") if event["kind"] == kind]


def newest(run: Path) -> Path:
    """Return the newest committed checkpoint of a run."""
    return max((run / "checkpoints").glob("step-" + "[0-9]" * 9))


def tensors(run: Path) -> dict[str, Any]:
    """Return every tensor of the newest checkpoint, whole: name → torch tensor."""
    from trainer.checkpoint.folder import read_manifest
    from trainer.checkpoint.store import read_tensor

    folder = newest(run)
    return {name: read_tensor(folder, name) for name in read_manifest(folder).tensors}


def lines_of(run: Path, stem: str) -> list[dict[str, Any]]:
    """Return the objects in all files of the ledger, or of the list of quarantined samples."""
    from trainer.record.shared_log import files_of

    return [line for file in files_of(run, stem) for line in records(file.path)]


def consumed(run: Path) -> list[int]:
    """Return every sequence number in the ledger, sorted."""
    return sorted(number for line in lines_of(run, "ledger") for number in line["sequences"])
