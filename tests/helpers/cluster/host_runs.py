"""Runs over hosts of a test's own (hosts.py): their config, the launchers' command lines, their metrics."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hosts import Host, Process
from processes import until
from whole_runs import consumed, make_corpus, records, train, whole_steps, write_config

STEPS = 80
EVERY = 10
RANK = ("germinal", "rank")
# How torchrun starts a rank: by the module, and by the command.
ENTRIES = {"module": ("-m", "trainer"), "command": ("--no-python", "germinal", "rank")}


def write_run(folder: Path, **changes: Any) -> Path:
    """Write the config of a run of STEPS steps that saves at every EVERYth; return its path."""
    small = {
        "train__eval_every": 0,
        "train__steps": STEPS,
        "checkpoint__every": EVERY,
        "checkpoint__keep": 3,
        "model__layers": 1,
    }
    return write_config(folder, make_corpus(folder, documents=20), **small | changes)


def undisturbed(config: Path, nproc: int = 2) -> Path:
    """The folder of a run of this config with which nothing interferes; made once."""
    folder = config.parent / f"undisturbed{nproc}"
    if not folder.exists():
        train(config, f"run_dir={folder}", nproc=nproc)
    return folder


def assert_undisturbed(run: Path, expected: Path) -> None:
    """The run reads as if nothing had interfered: every metric of every step, every sequence once."""
    assert records(run / "metrics.jsonl") == records(expected / "metrics.jsonl")
    assert consumed(run) == consumed(expected)


def by_hand(hosts: Sequence[Host], config: Path, *overrides: str, master: str = "h1") -> list[Process]:
    """Start one rank a host, as a batch system does that sets the common variables."""
    return [
        host.start(
            *RANK,
            config,
            *overrides,
            env={
                "MASTER_ADDR": master,
                "MASTER_PORT": "29500",
                "WORLD_SIZE": str(len(hosts)),
                "RANK": str(rank),
                "LOCAL_RANK": "0",
            },
        )
        for rank, host in enumerate(hosts)
    ]


def torchrun(host: Host, *arguments: object, nnodes: str = "2", restarts: int = 3, **start: Any) -> Process:
    """Start torchrun's agent of one rank on a host; the agents meet at h1."""
    return host.start(
        "torchrun",
        f"--nnodes={nnodes}",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=h1:29400",
        "--rdzv-id=test",
        f"--max-restarts={restarts}",
        *arguments,
        **start,
    )


def until_step(run: Path, step: int, *running: Process, seconds: float = 120.0) -> None:
    """Wait until the run has done more than that many steps."""
    until(lambda: whole_steps(run / "metrics.jsonl") > step, *running, seconds=seconds, what=f"step {step}")


def end_of_all(processes: Sequence[Process], seconds: float) -> tuple[list[int], float]:
    """Exit codes of the programs, and the seconds until the last ended. AssertionError where one does not."""
    began = time.monotonic()
    codes = [process.end(max(0.1, began + seconds - time.monotonic())) for process in processes]
    return codes, time.monotonic() - began


def error_lines(*processes: Process) -> list[str]:
    return [line for p in processes for line in p.said().splitlines() if "error: " in line]


def faults(run: Path) -> list[dict[str, Any]]:
    """The fault events of a run."""
    lines = (run / "events.jsonl").read_text().splitlines() if (run / "events.jsonl").exists() else []
    return [event for event in map(json.loads, lines) if event["kind"] == "fault"]
