"""What a rank says of a failure: one line with what to do; and how it leaves."""

import contextlib
import errno
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from common.exit_codes import DONE, FAILED, WRONG
from data.config import DataConfig, Source
from parallel.world import runtime as runtimes
from parallel.world.arrivals import Departure
from parallel.world.runtime import Runtime
from trainer.__main__ import main
from trainer.config import reading
from trainer.config.run_config import RunConfig
from trainer.evaluation.best import Best
from trainer.folder.fence import Fence
from trainer.models.decoder.config import DecoderConfig
from trainer.process.disk import explained, explaining
from trainer.process.failures import Failures
from trainer.ranks import IN_EVENTS, ON_EVERY_RANK
from trainer.state import TrainState
from whole_runs import events, make_corpus, train_here, write_config


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory: lower data.seq_len, train.micro_batch or the model's sizes"),
        (OSError(errno.ENOSPC, "full"), "run: No space left on device: make room and run the same command"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
            "Tried to allocate 2.00 GiB. GPU 0 has: lower train.micro_batch, set parallel.recompute=full or",
        ),
    ],
)
def test_out_of_memory_or_of_disk_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    cfg = RunConfig(
        name="run",
        model=DecoderConfig(layers=1, hidden=8, heads=1, kv_heads=1, vocab=8),
        data=DataConfig(sources=[Source(path="corpus")]),
        run_dir=str(tmp_path / "run"),
    )
    cfg.folder.mkdir()
    fence = Fence(cfg.folder)
    failures = Failures(cfg.folder, Runtime(3, 4, 3, torch.device("cpu")), fence)
    assert failures.fail(error) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "traceback: " not in line, "the folder may be another's"
    assert not (cfg.folder / "faults").exists()
    fence.take()
    assert failures.fail(error) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: rank 3: ") and said in line and line.endswith("faults/rank-00003.txt)")


RUN = Path("runs/mine")
NO_ROOM = "make room and run the same command again, or set run_dir to a folder on another disk"
KEY = "run_dir=runs/mine: "
REFUSED = "set run_dir to a folder that you can write to"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "full"), f"runs/mine: No space left on device: {NO_ROOM}"),
        (OSError(errno.EDQUOT, "full", "/cache/x"), f"/cache/x: Disk quota exceeded: {NO_ROOM}"),
        (OSError(errno.EFBIG, "big", "runs/mine/x"), f"runs/mine/x: File too large: {NO_ROOM}"),
        (
            OSError(errno.EROFS, "no", "runs/mine/.lock"),
            f"{KEY}runs/mine/.lock: Read-only file system: {REFUSED}",
        ),
        (OSError(errno.EACCES, "no", "runs"), f"{KEY}runs: Permission denied: {REFUSED}"),
        (OSError(errno.EACCES, "no", "runs/mine"), f"{KEY}Permission denied: {REFUSED}"),
        (OSError(errno.EACCES, "no", "corpus/x.tar"), "[Errno 13] no: 'corpus/x.tar'"),
        (OSError(errno.EIO, "bad", "runs/mine/x"), "[Errno 5] bad: 'runs/mine/x'"),
        (ValueError("other"), "other"),
    ],
)
def test_a_disk_that_is_full_or_not_ours_says_where_and_what_to_do(error: Exception, said: str) -> None:
    assert explained(error, RUN) == said
    with pytest.raises((OSError, ValueError), match=f"^{re.escape(said)}$") as told, explaining(RUN):
        raise error
    assert explained(told.value, RUN) == said, "said once"


@pytest.mark.parametrize("below", [".", "run"])
def test_a_run_folder_that_cannot_be_one_is_a_wrong_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    config = write_config(
        tmp_path, make_corpus(tmp_path, documents=5), run_dir=str(tmp_path / "file" / below)
    )
    (tmp_path / "file").touch()
    assert main([str(config)]) == WRONG
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: run_dir={tmp_path / 'file' / below}: ") and line.endswith(REFUSED)


@pytest.mark.parametrize("first", [["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"]])
def test_the_local_rank_that_deepspeeds_launcher_passes_is_dropped(
    capsys: pytest.CaptureFixture[str], first: list[str]
) -> None:
    assert main([*first, "/nowhere.yaml", "seed=1"]) == WRONG
    assert "/nowhere.yaml: no such file" in capsys.readouterr().err
    for arguments in (first, ["--local_ranks=1", "/nowhere.yaml"], ["-x"]):
        assert main(arguments) == WRONG
        assert "usage: " in capsys.readouterr().err


Training = Callable[[], bool]


def raising(error: Exception) -> Training:
    def train(**_: object) -> bool:
        raise error

    return train


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`main` on a run that is nothing but `training`, at step 3, with `closing` to be called after it."""
    config = write_config(tmp_path, tmp_path / "nowhere")

    def start(training: Training, closing: Callable[[], object] = lambda: None) -> int:
        class Run:
            state = TrainState(step=3)
            best = Best()

            def __call__(self) -> bool:
                return training()

        def assemble(cfg: RunConfig, runtime: Runtime, stack: ExitStack, *, fence: Fence, **rest: Any) -> Run:
            cfg.folder.mkdir(exist_ok=True)
            fence.take()
            stack.callback(closing)
            return Run()

        monkeypatch.setattr("trainer.run.assemble", assemble)
        return main([str(config)])

    return start


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError])
def test_an_error_in_the_middle_of_a_run_is_a_line_and_an_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], start: Callable[..., int], kind: type[Exception]
) -> None:
    assert start(raising(kind("no more\ndata"))) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no more data (traceback: ")
    (event,) = events(tmp_path / "run", "fault")
    assert (event["step"], event["reason"]) == (3, "no more data")


@pytest.mark.parametrize(
    ("note", "rank", "told"), [(ON_EVERY_RANK, 0, 1), (ON_EVERY_RANK, 1, 0), (IN_EVENTS, 0, 0)]
)
def test_one_fault_is_one_event(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Callable[..., int],
    note: str,
    rank: int,
    told: int,
) -> None:
    error = RuntimeError("step 4: the gradient is not finite")
    error.add_note(note)
    monkeypatch.setattr(runtimes, "meet", lambda **_: Runtime(rank, 1, 0, torch.device("cpu")))
    assert start(raising(error)) == FAILED
    assert len(events(tmp_path / "run", "fault")) == told


@pytest.mark.parametrize(
    ("training", "said"),
    [(lambda: True, "not saved"), (raising(RuntimeError("a peer is gone")), "a peer is gone")],
    ids=["after a clean end", "after a failure"],
)
def test_an_error_while_closing_is_a_line_too(
    capsys: pytest.CaptureFixture[str], start: Callable[..., int], training: Training, said: str
) -> None:
    assert start(training, closing=raising(RuntimeError("not saved"))) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said} (traceback: ")


def test_ranks_that_do_not_meet_are_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, start: Callable[..., int]
) -> None:
    monkeypatch.setattr(runtimes, "meet", raising(RuntimeError("timed out\nwaiting")))
    assert start(lambda: True) == FAILED
    assert capsys.readouterr().err == "error: timed out waiting\n"


class Left(BaseException):
    """What stands for the end of the process."""


@pytest.mark.parametrize(
    ("device", "training", "expected"),
    [
        ("cuda", lambda: True, ["closed", "destroyed", DONE]),
        ("cuda", raising(RuntimeError("NCCL error")), ["closed", "left with 1"]),
        ("cuda", raising(TypeError("a bug")), ["closed", "left with 1"]),
        ("cpu", raising(RuntimeError("peer gone")), ["closed", "destroyed", FAILED]),
    ],
    ids=["gpu, done", "gpu, failed", "gpu, bug", "cpu, failed"],
)
def test_after_a_failure_a_gpu_rank_does_not_wait_for_the_dead(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    start: Callable[..., int],
    device: str,
    training: Training,
    expected: list[object],
) -> None:
    did: list[object] = []

    def leave(code: int) -> None:
        did.append(f"left with {code}")
        raise Left

    runtime = Runtime(0, 2, 0, torch.device(device), is_supervised=True)  # tells no rank that comes late
    monkeypatch.setattr(runtimes, "meet", lambda **_: runtime)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: did.append("destroyed"))
    monkeypatch.setattr(os, "_exit", leave)
    with contextlib.suppress(Left):
        did.append(start(training, closing=lambda: did.append("closed")))
    assert did == expected
    assert ("Traceback" in (said := capsys.readouterr().err)) == ("a bug" in said)


def test_a_bug_of_a_single_process_is_left_for_the_debugger(start: Callable[..., int]) -> None:
    with pytest.raises(TypeError, match="a bug"):
        start(raising(TypeError("a bug")))


def test_a_model_that_no_memory_holds_is_told_by_its_key_and_its_size(tmp_path: Path) -> None:
    file = write_config(tmp_path, make_corpus(tmp_path, documents=10), train__steps=1)
    width = reading.load(file).model.hidden
    with pytest.raises(RuntimeError, match=r"^model\.vocab=10000000000000: out of memory") as caught:
        train_here(file, "model.vocab=1e13")  # beyond 2^47 bytes, which no kernel promises a process
    found = str(caught.value)
    parameters, size = (
        int(text.replace(",", "")) for text in re.findall(r"(\S+) (?:parameters|bytes)", found)
    )
    assert size == 4 * parameters and 10**13 * width <= parameters < 2.1 * 10**13 * width
    assert "\n" not in found


def test_a_rank_that_waited_for_others_in_vain_tells_those_that_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime, told = Runtime(0, 3, 0, torch.device("cpu")), []

    def in_vain() -> None:
        raise RuntimeError("rank 2 of 3 did not come in time")

    monkeypatch.setattr(runtime, "join", in_vain)
    monkeypatch.setattr(runtime, "announce_exit", told.append)
    monkeypatch.setattr(runtimes, "meet", lambda **_: runtime)
    assert main([str(write_config(tmp_path, tmp_path))]) == FAILED
    assert told == [FAILED] and runtime.has_reported
    assert capsys.readouterr().err == "error: rank 2 of 3 did not come in time\n"


@pytest.mark.parametrize("code", [None, FAILED])
def test_under_our_supervisor_a_broken_collective_names_the_rank_that_has_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int | None
) -> None:
    """A rank that failed by itself has written its own event; the supervisor writes the line."""
    runtime = Runtime(0, 2, 0, torch.device("cpu"), is_supervised=True)
    fence = Fence(tmp_path)
    fence.take()
    failures = Failures(tmp_path, runtime, fence)
    runtime.presence._note(Departure(1, code, host="n2"))
    error = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1234. GLHF!")
    failures.record(error, 53)
    assert failures.fail_or_follow(error) == FAILED
    assert capsys.readouterr().err == ""
    if code is not None:
        assert not (tmp_path / "events.jsonl").exists()
        return
    (event,) = events(tmp_path, "fault")
    assert event["reason"] == "rank 1 on n2 is gone without a word: was it killed?"
    assert (event["rank"], event["host"], event["step"]) == (1, "n2", 53)
