"""Law 5: kill a run anywhere, run the same command again, and nobody can tell."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from whole_runs import (
    GERMINAL,
    consumed,
    environment,
    events,
    kill_when,
    make_corpus,
    newest,
    records,
    tensors,
    train,
    train_here,
    whole_steps,
    write_config,
)

KILLER = Path(__file__).parents[1] / "helpers/programs/killer.py"
STEPS, BATCH = 12, 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train_here(write_config(folder, corpus))
    return folder / "run"


def same_result(run: Path, reference: Path) -> None:
    """metrics.jsonl, the ledger and every tensor of the last checkpoint, bit for bit."""
    assert records(run / "metrics.jsonl") == records(reference / "metrics.jsonl")
    assert records(run / "ledger.jsonl") == records(reference / "ledger.jsonl")
    mine, theirs = tensors(run), tensors(reference)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name


def kills() -> list[Any]:
    """(where, at which of these, with asynchronous saves): one of each place, and the others marked slow."""
    draw = random.Random(7)
    # 4 micro-batches a step, so 4·k + 2 is in the middle of an accumulation window.
    places = [
        ("step", draw.randrange(2, STEPS + 1)),
        ("step", draw.randrange(2, STEPS + 1)),
        ("micro_batch", 4 * draw.randrange(5, STEPS) + 2),
        ("micro_batch", 4 * draw.randrange(0, 4) + 3),
        ("fsync", draw.randrange(1, 4)),
        ("fsync", draw.randrange(6, 12)),
        ("rename", draw.randrange(1, 6)),
    ]
    always = {(2, True), (6, False)}
    return [
        pytest.param(*place, later, marks=() if (number, later) in always else pytest.mark.slow)
        for later in (False, True)
        for number, place in enumerate(places)
    ]


@pytest.mark.parametrize(("where", "count", "asynchronous"), kills())
def test_killed_and_run_again_is_bit_identical(
    where: str, count: int, asynchronous: bool, corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus, checkpoint__async=asynchronous)
    command = [sys.executable, KILLER, where, count, config]
    killed = subprocess.run([str(w) for w in command], env=environment(), capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert train_here(config)
    same_result(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_killed_over_and_over_on_two_ranks(corpus: Path, tmp_path: Path) -> None:
    """Kills from outside, both ranks at once, at whatever step they are; then to the end."""
    reference, run = tmp_path / "a", tmp_path / "b"
    reference.mkdir()
    run.mkdir()
    layout = ("parallel.zero=2", "train.steps=24", "checkpoint.every=3")
    train(write_config(reference, corpus), *layout, nproc=2)
    config = write_config(run, corpus)
    draw = random.Random(3)
    for _ in range(3):
        at = whole_steps(run / "run" / "metrics.jsonl") + draw.randrange(1, 6)
        kill_when(
            [GERMINAL, "train", config, "--nproc", 2, *layout],
            lambda at=at: whole_steps(run / "run" / "metrics.jsonl") >= at,
        )
    train(config, *layout, nproc=2)
    assert consumed(run / "run") == list(range(24 * BATCH))
    same = [records(folder / "run" / "metrics.jsonl") for folder in (reference, run)]
    assert same[0] == same[1]
    mine, theirs = tensors(run / "run"), tensors(reference / "run")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_resume_on_other_layouts_loses_and_repeats_nothing(
    corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """pp2×tp2, stopped; dp4, stopped; one process to the end: the ledger is 0…N once, the curve within
    tolerance.
    """
    config = write_config(tmp_path, corpus)
    run = tmp_path / "run"
    for steps, nproc, layout in (
        (4, 4, ("parallel.pp=2", "parallel.tp=2")),
        (8, 4, ("train.micro_batch=1",)),
    ):
        # The schedule must be the whole run's, so the run is stopped by a signal and not by fewer steps.
        code = kill_when(
            [GERMINAL, "train", config, "--nproc", nproc, *layout],
            lambda steps=steps: whole_steps(run / "metrics.jsonl") >= steps - 2,
            number=signal.SIGTERM,
        )
        assert code == 75, "a run that was asked to stop saves and exits with 75"
        assert events(run, "stop")[-1]["reason"].endswith("after a request to stop")
    train(config)
    assert consumed(run) == list(range(STEPS * BATCH))
    mine, theirs = records(run / "metrics.jsonl"), records(undisturbed / "metrics.jsonl")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for line, expected in zip(mine, theirs):
        for key in ("loss", "grad_norm"):
            if key in expected:
                assert line[key] == pytest.approx(expected[key], rel=1e-5), (line["step"], key)
    assert {event["ranks"] for event in events(run, "start")} == {4, 1}
    started = events(run, "started")
    assert len(started) == 3 and all("building the model" in event["seconds"] for event in started)


def test_flipped_byte_in_a_checkpoint_falls_back(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    run = tmp_path / "run"
    assert train_here(config)
    damaged = newest(run)
    weights = next(damaged.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 0x10
    weights.write_bytes(data)
    assert train_here(config)
    faults = events(run, "fault")
    assert len(faults) == 1 and weights.name in faults[0]["reason"], faults
    assert events(run, "resume")[-1]["step"] == 8
    same_result(run, undisturbed)


def test_a_finished_run_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus, train__steps=3)
    assert train_here(config)
    before = records(tmp_path / "run" / "metrics.jsonl")
    train(config)
    assert records(tmp_path / "run" / "metrics.jsonl") == before


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        # SLURM's, within 13 ms at a time limit.
        ((signal.SIGTERM, signal.SIGCONT, signal.SIGTERM), 75),
        pytest.param((signal.SIGINT,), 130, marks=pytest.mark.slow),
    ],
    ids=["term", "ctrl-c"],
)
def test_a_signal_saves_says_where_and_the_same_command_goes_on(
    signals: tuple[signal.Signals, ...], code: int, corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus, checkpoint__every=0)
    run = tmp_path / "run"
    command = [GERMINAL, "train", str(config)]
    with subprocess.Popen(
        command,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A suite that a script runs in the background has SIGINT ignored, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    ) as process:
        while whole_steps(run / "metrics.jsonl") < 3:
            assert process.poll() is None
            time.sleep(0.002)
        for number in signals:
            process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    at = newest(run)
    step = int(at.name.removeprefix("step-"))
    assert f"stopped: saved at step {step}: {at}; the same command goes on\n" in said and "error" not in said
    train(config)
    same_result(run, undisturbed)
