"""Which rank a process is, from each launcher's variables."""

import os
import threading
import time
from datetime import timedelta

import pytest
import torch

from parallel.world import runtime
from parallel.world.arrivals import Departure
from parallel.world.launcher import identity

STEP = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0"}
INTERACTIVE = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": str(0xFFFFFFFA)}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"WORLD_SIZE": "1"}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        (STEP | {"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"}, (5, 6, 2)),
        # A batch script, salloc's shell and the submit host, where the job has one task.
        ({"SLURM_JOB_ID": "9", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, (0, 1, 0)),
        (INTERACTIVE | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, (0, 1, 0)),
        ({"SLURM_JOB_ID": "9", "SLURM_NNODES": "1"}, (0, 1, 0)),
        # `germinal train` in an allocation of several tasks says that its rank is alone.
        (INTERACTIVE | {"SLURM_NTASKS": "4", "RANK": "0", "WORLD_SIZE": "1"}, (0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 2, 0)),
    ],
)
def test_identity(env: dict[str, str], expected: tuple[int, int, int]) -> None:
    assert identity(env) == expected


def test_a_single_process_joins_nothing() -> None:
    found = runtime.start(env={})
    assert (found.rank, found.world, found.is_writer, found.stopping) == (0, 1, True, False)
    found.stop()
    found.stop()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 is outside WORLD_SIZE=4"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "here"}, "^WORLD_SIZE=2 without RANK: set both"),
        ({"RANK": "1"}, "^RANK=1 without WORLD_SIZE: set both"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK=x, WORLD_SIZE=4: not numbers"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "WORLD_SIZE=2, LOCAL_RANK=x: not numbers"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "needs MASTER_ADDR"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "bar"}, "^MASTER_PORT=bar: "),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "65536"}, "^MASTER_PORT="),
        # Another launcher's ranks, inside a SLURM step; and a batch script's without srun, alone of two.
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n1"}, "MASTER_ADDR"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n1"}, "`srun germinal rank"),
        (INTERACTIVE | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "SLURM_NTASKS=2, and srun has not"),
        ({"SLURM_STEP_ID": str(0xFFFFFFFB), "SLURM_PROCID": "0", "SLURM_NNODES": "2"}, "SLURM_NNODES=2, and"),
        ({"SLURM_JOB_ID": "9", "SLURM_NTASKS": "2"}, "SLURM_NTASKS=2, and srun has not started"),
    ],
)
def test_variables_that_contradict(env: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        runtime.start(env=env, timeout=timedelta(seconds=1))


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        # It may be there after a reboot: the command is not wrong.
        ("cuda", RuntimeError, "^GERMINAL_DEVICE=cuda: torch .* finds no CUDA device"),
        ("gpu", ValueError, "=gpu: choose cpu or cuda"),
    ],
)
def test_a_device_that_is_not_there_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, wanted: str, kind: type[Exception], words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(kind, match=words):
        runtime.start(env={"GERMINAL_DEVICE": wanted})


@pytest.mark.parametrize(
    ("device", "told", "found"),
    [
        ("cuda", {}, "expandable_segments:True"),
        ("cpu", {}, None),
        ("cuda", {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ("cuda", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_every_run_on_a_gpu_has_segments_that_grow(
    monkeypatch: pytest.MonkeyPatch, device: str, told: dict[str, str], found: str | None
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert runtime.start(env={"GERMINAL_DEVICE": device}).device.type == device
    assert os.environ.get("PYTORCH_ALLOC_CONF") == found


def test_a_file_system_that_does_not_answer_keeps_no_rank_that_is_to_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(runtime, "REPORT_SECONDS", 0.1)
    monkeypatch.setattr(runtime, "START_GRACE_SECONDS", 0.0)
    back = threading.Event()
    rank = runtime.Runtime(0, 2, 0, torch.device("cpu"))
    rank.on_lost = lambda left: back.wait(20)
    began = time.monotonic()
    with pytest.raises(SystemExit, match=r"^1$"):
        rank._follow(Departure(1))
    assert time.monotonic() - began < 10 and "rank 1 is gone without a word" in capfd.readouterr().err
    back.set()


def test_of_a_rank_that_is_gone_without_a_word_rank_0_tells_and_of_rank_0_every_rank() -> None:
    def telling(left: Departure) -> list[int]:
        ranks = [runtime.Runtime(rank, 4, rank, torch.device("cpu")) for rank in range(4)]
        return [rank.rank for rank in ranks if rank.rank != left.rank and rank.should_report(left)]

    assert telling(Departure(2)) == [0]
    assert telling(Departure(0)) == [1, 2, 3]
    assert telling(Departure(2, 1)) == telling(Departure(0, 75, "asked to stop")) == [], "it has said why"
