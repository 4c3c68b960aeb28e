"""A signal to one rank alone, from outside: the others do not wait for it, and what is left behind ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.processes import stat
from trainer.process.interrupts import ONE_PRESS_SECONDS
from whole_runs import (
    GERMINAL,
    by_hand,
    consumed,
    environment,
    events,
    make_corpus,
    records,
    train,
    train_here,
    whole_steps,
    write_config,
)

Run = tuple[Path, Path]  # the config, the run folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    changes = {"train__eval_every": 0, "checkpoint__every": 3, "model__layers": 1, "train__steps": 100_000}
    return write_config(tmp_path, make_corpus(tmp_path, documents=20), **changes), tmp_path / "run"


def until(ready: Callable[[], bool], *processes: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert all(process.poll() is None for process in processes), "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answers(pid: int) -> bool:
    """Whether the process handles SIGTERM (proc(5): SigCgt)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def ended(pid: int) -> bool:
    """Whether the process is gone, or waits only for a parent that may never ask."""
    found = stat(pid)
    return found is None or found.has_ended


def imports_torch(pid: int) -> bool:
    return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()


MOMENTS: dict[str, Callable[[int, Path], bool]] = {
    "before its imports": lambda pid, folder: answers(pid),
    "while it imports torch": lambda pid, folder: answers(pid) and imports_torch(pid),
    "while the engine is built": lambda pid, folder: (folder / ".epoch").exists(),
    "around the first step": lambda pid, folder: (folder / "config.yaml").exists(),
}
slow = pytest.mark.slow
EVERY = [pytest.param(moment, marks=slow) for moment in MOMENTS]


@pytest.mark.parametrize("leaver", [0, pytest.param(1, marks=slow)])  # at 0 all ranks meet
@pytest.mark.parametrize(
    "moment", ["while it imports torch", *(pytest.param(m, marks=slow) for m in MOMENTS if "torch" not in m)]
)
def test_a_rank_that_was_started_by_hand_and_leaves_takes_the_other_along(
    run: Run, moment: str, leaver: int
) -> None:
    config, folder = run
    with by_hand(config) as ranks:
        until(lambda: MOMENTS[moment](ranks[leaver].pid, folder), *ranks)
        ranks[leaver].terminate()
        said = [rank.communicate(timeout=90)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], said
    errors = [line for line in "".join(said).splitlines() if line.startswith("error: ")]
    saved = "saved at step" in "".join(said)
    assert saved or (len(errors) == 1 and "nothing was under way" in errors[0]), said
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize("leaver", [1, pytest.param(0, marks=slow)])
@pytest.mark.parametrize("moment", ["while the engine is built", *EVERY[:2], *EVERY[3:]])
def test_a_rank_of_our_supervisor_that_leaves_takes_the_other_along(
    run: Run, moment: str, leaver: int
) -> None:
    config, folder = run
    command = [GERMINAL, "train", str(config), "--nproc", "2"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as parent:
        try:
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
            until(lambda: len(children.read_text().split()) == 2, parent)
            pid = int(children.read_text().split()[leaver])
            until(lambda: MOMENTS[moment](pid, folder), parent)
            os.kill(pid, signal.SIGTERM)
            _, said = parent.communicate(timeout=90)
        finally:
            parent.kill()
    assert parent.returncode == 75, said
    assert said.count("error: ") <= 1 and "Traceback" not in said, said
    assert "nothing was under way" in said or "saved at step" in said, said


def test_the_rank_that_a_dead_rank_0_leaves_behind_ends_and_writes_nothing_into_the_next_start(
    run: Run,
) -> None:
    config, folder = run
    with by_hand(config) as (first, other):
        until(lambda: whole_steps(folder / "metrics.jsonl") > 5, first, other)
        other.send_signal(signal.SIGSTOP)  # so that it is there, and in the middle of something, when
        first.kill()  # the other dies
        first.wait()
        other.send_signal(signal.SIGCONT)
        assert train_here(config, "train.steps=30", "checkpoint.every=10")
        _, said = other.communicate(timeout=90)
    assert other.returncode == 1 and said.count("error: ") == 1, said
    assert consumed(folder) == list(range(30 * 8))
    assert not list(folder.rglob(".tmp-*"))
    assert [event["epoch"] for event in events(folder, "start")] == [1, 2]


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_though_the_step_cannot_end(run: Run) -> None:
    config, folder = run
    with by_hand(config) as (first, other):
        until(lambda: whole_steps(folder / "metrics.jsonl") > 2, first, other)
        other.send_signal(signal.SIGSTOP)
        first.send_signal(signal.SIGINT)
        time.sleep(2 * ONE_PRESS_SECONDS)  # closer together, two would count as one
        assert first.poll() is None, "it waits for the other, to save"
        first.send_signal(signal.SIGINT)
        said = [first.communicate(timeout=60)[1]]
        other.send_signal(signal.SIGCONT)
        said.append(other.communicate(timeout=60)[1])
    assert [first.returncode, other.returncode] == [130, 130], said
    assert "".join(said).count("error: ") == 1, said
    assert "interrupted again: nothing is saved: the same command begins anew" in said[0], said
    assert said[0].count("stopping after this step: saving") == 1 and "stopping" not in said[1], said


def of_torchrun(config: Path, *options: str) -> list[str]:
    torchrun = Path(sys.executable).with_name("torchrun")
    return [str(torchrun), "--standalone", "--nproc-per-node=2", *options, "-m", "trainer", str(config)]


def ranks_of(launcher: "subprocess.Popen[str]") -> list[int]:
    """The processes of its ranks, in their order; waits until both are there."""
    found: dict[bytes, int] = {}

    def there() -> bool:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
        for pid in map(int, children.split()):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found.update({word: pid for word in variables if word.startswith(b"RANK=")})
        return len(found) == 2

    until(there, launcher)
    return [found[name] for name in sorted(found)]


@pytest.mark.slow
@pytest.mark.parametrize("leaver", [0, 1])
@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment != "around the first step"])
def test_a_rank_of_torchrun_that_leaves_takes_the_other_along(run: Run, moment: str, leaver: int) -> None:
    config, folder = run
    with subprocess.Popen(
        of_torchrun(config), env=environment(), stderr=subprocess.PIPE, text=True
    ) as launcher:
        try:
            pids = ranks_of(launcher)
            until(lambda: MOMENTS[moment](pids[leaver], folder), launcher)
            os.kill(pids[leaver], signal.SIGTERM)
            _, said = launcher.communicate(timeout=90)
        finally:
            launcher.kill()
    assert launcher.returncode == 1, said  # whatever its ranks' exit codes
    assert "nothing was under way" in said and "saved at step" not in said, said
    assert all(map(ended, pids))


@pytest.mark.slow
def test_ranks_of_torchrun_end_when_it_is_gone(run: Run) -> None:
    config, folder = run
    with subprocess.Popen(
        of_torchrun(config), env=environment(), stderr=subprocess.DEVNULL, text=True
    ) as launcher:
        until(lambda: whole_steps(folder / "metrics.jsonl") > 2, launcher)
        pids = ranks_of(launcher)
        launcher.kill()
    until(lambda: all(map(ended, pids)))
    steps = whole_steps(folder / "metrics.jsonl") + 10  # they made some more before they noticed
    train(config, f"train.steps={steps}")
    assert consumed(folder) == list(range(steps * 8))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_ranks_that_torchrun_starts_again_go_on_as_if_nothing_had_happened(
    run: Run, tmp_path: Path, killed: int
) -> None:
    """They meet in the agent's store, beside what the dead ones had put there."""
    config, folder = run
    steps = ("train.steps=60", "checkpoint.every=10")
    command = [*of_torchrun(config, "--max-restarts=1"), *steps]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as launcher:
        try:
            until(lambda: whole_steps(folder / "metrics.jsonl") > 15, launcher)
            os.kill(ranks_of(launcher)[killed], signal.SIGKILL)
            _, said = launcher.communicate(timeout=150)
        finally:
            launcher.kill()
    assert launcher.returncode == 0, said
    assert [(event["step"] > 0, event["epoch"]) for event in events(folder, "start")] == [
        (False, 1),
        (True, 2),
    ]
    train(config, *steps, f"run_dir={tmp_path / 'unbroken'}", nproc=2)
    assert records(folder / "metrics.jsonl") == records(tmp_path / "unbroken" / "metrics.jsonl")
    assert consumed(folder) == list(range(60 * 8))
