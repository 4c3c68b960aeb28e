"""A rank that hangs is found and named, all ranks end, and the run goes on as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from whole_runs import (
    GERMINAL,
    consumed,
    environment,
    events,
    make_corpus,
    records,
    train,
    whole_steps,
    write_config,
)

PLANTED = Path(__file__).parents[1] / "helpers" / "hanging"
# Seconds. Long enough for a machine that does other things too: the wrong rank, or none, may be named else.
HANG, FIRST = 6.0, 20.0
# Besides the bound: the ranks are asked three times, a stopped one in vain, and killed ten seconds later.
REPORTED = 45.0
STEPS = 30


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config, and the folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    supervise = {"supervise__hang_seconds": HANG, "supervise__first_seconds": FIRST}
    config = write_config(
        folder,
        make_corpus(folder, documents=40),
        model__layers=1,
        train__steps=STEPS,
        train__eval_every=2,
        checkpoint__every=2,
        **supervise,
    )
    train(config, nproc=2)
    return config, folder / "run"


def hanging(where: str, rank: int, count: int, folder: Path) -> dict[str, str]:
    """The environment of a run in which a rank hangs once; see `helpers/hanging/sitecustomize.py`."""
    paths = [str(PLANTED), *filter(None, [os.environ.get("PYTHONPATH")])]
    mark = folder / "mark"
    return {"HANG": f"{where} {rank} {count} {mark}", "PYTHONPATH": os.pathsep.join(paths)}


def start(config: Path, folder: Path, env: Mapping[str, str]) -> "subprocess.Popen[str]":
    command = [GERMINAL, "train", str(config), "--nproc", "2", f"run_dir={folder}"]
    return subprocess.Popen(command, env=environment() | env, stderr=subprocess.PIPE, text=True)


def finish(run: "subprocess.Popen[str]", folder: Path, seconds: float) -> str:
    """Wait for the hang to be told, within `seconds`, and for the run, whose ranks are then started again, to
    end; return what it said.
    """
    began = time.monotonic()
    try:
        while not events(folder, "hang"):
            assert time.monotonic() - began < seconds and run.poll() is None
            time.sleep(0.05)
        _, said = run.communicate(timeout=180)
    finally:
        run.kill()
    assert run.returncode == 0, said
    assert len(events(folder, "restart")) == 1
    return said


def wait_for_steps(folder: Path, steps: int, run: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while whole_steps(folder / "metrics.jsonl") < steps:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def assert_as_undisturbed(folder: Path, undisturbed: Path) -> None:
    assert records(folder / "metrics.jsonl") == records(undisturbed / "metrics.jsonl")
    assert consumed(folder) == list(range(STEPS * 8))
    assert len(events(folder, "hang")) == 1, "and the second start went on to the end"


def assert_told(said: str, folder: Path, *, rank: int | None, phase: str, call: str) -> dict[str, Any]:
    """One hang: three lines, an event, and a file with the stacks; by all of them, `rank` is behind."""
    lines = re.sub(r"^\[rank \d\] ", "", said, flags=re.MULTILINE).splitlines()
    at = [number for number, line in enumerate(lines) if line.startswith("hang: ")]
    assert len(at) == 1 and "Traceback" not in said, said
    first, second, third = lines[at[0] : at[0] + 3]
    assert call in first, first
    if rank is not None:
        assert f"rank {rank} on {os.uname().nodename}" in first and f"rank {1 - rank} " in second, said
    (event,) = events(folder, "hang")
    assert (event["rank"], event["phase"]) == (rank if rank is not None else 0, phase), event
    assert event["host"] == os.uname().nodename
    assert event["seconds"] < FIRST + 5.0
    assert event["file"] in third
    assert not events(folder, "fault"), "the ends that the hang caused are no faults of their own"
    return event


# Where, on which rank, at which call, and what the first line names.
PLANTS = {
    "an endless loop in a callback": ("loop", 1, 120, "step", "sitecustomize.py:23 loop"),
    "an endless loop in a tracker": ("tracker", 0, 12, "step", "sitecustomize.py:23 loop"),
    "a hung read of a shard": ("read", 1, 3, "step", "for the thread data-loader, which is in data/stream"),
    "a hung save": ("save", 1, 6, "save", "sitecustomize.py:38 fifo"),
    "a hung save of rank 0": ("save", 0, 6, "save", "sitecustomize.py:38 fifo"),
    "an evaluation": ("evaluation", 1, 8, "evaluation", "sitecustomize.py:23 loop"),
    "the start": ("start", 1, 1, "start", "sitecustomize.py:23 loop"),
    "a call that keeps the interpreter": ("held", 1, 120, "step", "does not answer: it runs, but none of"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", PLANTS)
def test_a_planted_hang(what: str, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    config, reference = undisturbed
    where, rank, count, phase, call = PLANTS[what]
    folder = tmp_path / "run"
    run = start(config, folder, hanging(where, rank, count, tmp_path))
    said = finish(run, folder, 60 + FIRST + REPORTED)
    event = assert_told(said, folder, rank=rank, phase=phase, call=call)
    text = (folder / event["file"]).read_text()
    assert f"stacks of rank {1 - rank}" in text
    assert where == "held" or f"stacks of rank {rank}" in text
    assert_as_undisturbed(folder, reference)


@pytest.mark.slow
def test_a_collective_that_other_ranks_do_not_call(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    config, reference = undisturbed
    folder = tmp_path / "run"
    run = start(config, folder, hanging("collective", 1, 120, tmp_path))
    said = finish(run, folder, 60 + FIRST + REPORTED)
    event = assert_told(said, folder, rank=None, phase="step", call="in different calls")
    assert "broadcast" in event["reason"] and "rank 0" in event["reason"] and "rank 1" in event["reason"]
    text = (folder / event["file"]).read_text()
    assert "collective under way: gloo:broadcast number" in text  # torch's flight recorder
    assert_as_undisturbed(folder, reference)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 0])
def test_a_rank_that_is_stopped(stopped: int, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    config, reference = undisturbed
    folder = tmp_path / "run"
    run = start(config, folder, {})
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    wait_for_steps(folder, 10, run)
    os.kill(int(children.read_text().split()[stopped]), signal.SIGSTOP)
    said = finish(run, folder, FIRST + REPORTED)
    found = events(folder, "hang")
    call = "does not answer: it is stopped by a signal"
    assert_told(said, folder, rank=stopped, phase=found[0]["phase"] if found else "step", call=call)
    assert_as_undisturbed(folder, reference)


@pytest.mark.slow
def test_torchrun_kills_a_rank_that_is_stopped_and_starts_all_again(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    config, reference = undisturbed
    folder = tmp_path / "run"
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [torchrun, "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "trainer", config]
    with subprocess.Popen(
        [*map(str, command), f"run_dir={folder}"], env=environment(), stderr=subprocess.PIPE, text=True
    ) as launcher:
        try:
            wait_for_steps(folder, 10, launcher)
            children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            (rank_1,) = (
                pid for pid in children if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
            )
            os.kill(int(rank_1), signal.SIGSTOP)
            _, said = launcher.communicate(timeout=FIRST + REPORTED + 180)
        finally:
            launcher.kill()
    assert launcher.returncode == 0, said
    assert said.count("hang: step ") == 1 and "rank 1 on " in said, said
    assert "does not answer: it is stopped by a signal" in said
    assert_as_undisturbed(folder, reference)


@pytest.mark.slow
def test_no_false_alarm_in_1000_steps_under_a_load_that_triples_them(tmp_path: Path) -> None:
    """Evaluations and saves between, bounds of two seconds, and six busy processes for a while each."""
    config = write_config(
        tmp_path,
        make_corpus(tmp_path, documents=40),
        model__layers=1,
        train__steps=1000,
        train__eval_every=50,
        checkpoint__every=100,
        supervise__hang_seconds=2.0,
        supervise__first_seconds=60.0,
    )
    folder = tmp_path / "run"
    run = start(config, folder, {})
    busy: list[subprocess.Popen[bytes]] = []
    try:
        wait_for_steps(folder, 100, run)
        while run.poll() is None:
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(6)]
            time.sleep(6)
            while busy:
                busy.pop().kill()
            time.sleep(3)
        _, said = run.communicate()
    finally:
        for process in busy:
            process.kill()
        run.kill()
    assert run.returncode == 0, said
    assert not events(folder, "hang") and not (folder / "faults").exists()
    seconds = sorted(
        json.loads(line)["step_seconds"]
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if "step_seconds" in line
    )
    assert len(seconds) == 1000
    assert seconds[-100] > 3 * seconds[100], "the load did triple step times"


# One rank whose blocks are compiled, as on a GPU, by a backend that takes its time: on a CPU parallel.compile
# runs them eagerly. Before step 6 what was compiled is dropped.
COMPILES = """
import sys, time
import torch
from parallel.transforms import recompute
def slow(graph, inputs):
    time.sleep({seconds})
    return graph.forward
recompute.compile_backend = lambda wanted, device: slow if wanted else None
from parallel.torch_engine.engine import TorchEngine
whole, steps = TorchEngine.step, []
def step(*args, **kwargs):
    steps.append(1)
    if len(steps) == 6:
        torch._dynamo.reset()
    return whole(*args, **kwargs)
TorchEngine.step = step
from trainer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_no_false_alarm_while_torch_compiles(tmp_path: Path) -> None:
    """In the first step, and in a later one that lasts longer than a step may."""
    config = write_config(
        tmp_path,
        make_corpus(tmp_path, documents=40),
        model__layers=1,
        train__steps=8,
        train__eval_every=0,
        checkpoint__every=0,
        parallel__compile=True,
        supervise__hang_seconds=HANG,
        supervise__first_seconds=300.0,
    )
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", COMPILES.format(seconds=2 * HANG), str(config), f"run_dir={folder}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert not events(folder, "hang") and not (folder / "faults").exists()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    seconds = [line["step_seconds"] for line in lines if "loss" in line]
    assert min(seconds[0], seconds[5]) > 2 * HANG, "the compiler was too quick to show anything"
