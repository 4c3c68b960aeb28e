"""What a run's own watchdog writes into the run folder, and that it needs nothing of the main thread."""

import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from parallel.world.runtime import Runtime
from trainer.folder.fence import Fence
from trainer.watch import begin
from trainer.watch.begin import HangRecord
from trainer.watch.phases import STEP, Phases
from trainer.watch.report import Finding
from trainer.watch.whereabouts import Standing
from whole_runs import events


def test_the_file_and_the_event_are_made_once_a_start_and_by_the_newest_start_only(tmp_path: Path) -> None:
    over = Standing("main", "step", 57, "", 132.0, 120.0)
    finding = Finding((1, 2), ("n1",), ("hang: step 57 …", "ranks 0, 3 wait", "in {file}"))
    fence = Fence(tmp_path)
    elsewhere = Path(HangRecord(tmp_path, fence).write("text", finding, over))  # before the folder is taken
    assert elsewhere.read_text() == "text" and elsewhere.parent != tmp_path
    elsewhere.unlink()
    fence.take()
    record = HangRecord(tmp_path, fence)
    assert record.write("text", finding, over) == str(tmp_path / "faults" / "hang-start-00001.txt")
    with pytest.raises(FileExistsError):
        record.write("other", finding, over)
    (event,) = events(tmp_path, "hang")
    assert {**event, "time": ""} == {
        "time": "",
        "kind": "hang",
        "step": 57,
        "reason": "step 57 …; ranks 0, 3 wait",
        "rank": 1,
        "host": "n1",
        "ranks": "1-2",
        "phase": "step",
        "seconds": 132.0,
        "file": "faults/hang-start-00001.txt",
    }


def test_a_hang_without_an_event_has_its_file_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    fence = Fence(tmp_path)
    fence.take()
    finding = Finding((1,), ("n1",), ("hang: step 57 …", "rank 0 waits", "in {file}"))
    said = HangRecord(tmp_path, fence).write("text", finding, Standing("main", "step", 57, "", 132.0, 120.0))
    file = tmp_path / "faults" / "hang-start-00001.txt"
    assert file.read_text() == "text" and said.startswith(f"{file} (events.jsonl has no event: ")


def test_a_main_thread_that_hangs_in_its_own_report_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(begin, "REPORT_SECONDS", 0.1)
    runtime, phases = Runtime(0, 1, 0, torch.device("cpu")), Phases()
    supervise = SimpleNamespace(hang_factor=10.0, hang_seconds=0.2, first_seconds=60.0)
    cfg = SimpleNamespace(name="x", folder=tmp_path, supervise=supervise)
    left: list[int] = []
    watch = begin.watchdog(cfg, runtime, Fence(tmp_path), phases)  # type: ignore[arg-type]
    watch._leave = left.append
    phases.main._durations = {STEP: deque([0.01] * 3)}
    with runtime.reporting():
        phases.main.next(STEP, 7)
        watch.begin()
        deadline = time.monotonic() + 20
        while not left and time.monotonic() < deadline:
            time.sleep(0.01)
        watch.stop()
    assert left[0] == 1 and capfd.readouterr().err.startswith("hang: step 7 has lasted ")
