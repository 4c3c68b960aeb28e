"""Experiment trackers: off means not imported, and one that fails is an event."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.metrics import trackers as trackers_module
from trainer.metrics.events import EventLog
from trainer.metrics.trackers import Trackers, flat, wandb_mode


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_off_means_not_imported() -> None:
    names = ("wandb", "accelerate", "tensorboard", "matplotlib", "rich")
    code = f"import sys, trainer.metrics.meter; print([m for m in {names} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    events = EventLog(tmp_path / "events.jsonl")
    trackers = Trackers(["jsonl", "tensorboard"], name="t", run_dir=tmp_path, config={"a": 1}, events=events)
    for step in range(1, 4):
        trackers.log({"step": step, "loss": 1 / step}, step)
    trackers.log({"step": 3, "eval": {"held": {"bits_per_byte": 1.5}}}, 3)
    trackers.finish()
    assert not (tmp_path / "events.jsonl").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "tensorboard" / "t"))
    read.Reload()
    assert [round(point.value, 3) for point in read.Scalars("loss")] == [1.0, 0.5, 0.333]
    assert [point.step for point in read.Scalars("eval/held/bits_per_byte")] == [3]


def test_wandb_is_offline_unless_a_key_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    settings = SimpleNamespace(
        mode="online", api_key=None, identity_token_file=None, base_url="https://api.x.test"
    )
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    home = tmp_path / ".netrc"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode() == "offline"
    home.write_text("machine api.x.test login user password key\n")
    home.chmod(0o600)
    assert wandb_mode() == "online"
    home.unlink()
    settings.api_key = "key"
    assert wandb_mode() == "online"
    settings.mode = "disabled"  # WANDB_MODE
    assert wandb_mode() == "disabled"


def test_wandb_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    trackers = Trackers(
        ["wandb"], name="t", run_dir=tmp_path, config={"seed": 1}, events=EventLog(tmp_path / "events.jsonl")
    )
    trackers.log({"step": 1, "loss": 1.0}, 1)
    trackers.finish()
    assert not (tmp_path / "events.jsonl").exists(), (tmp_path / "events.jsonl").read_text()
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_a_failing_tracker_is_an_event_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = []

    def start(self: Trackers, tool: str) -> Any:
        if tool == "mlflow":
            raise SystemExit("no server")
        log = lambda values, step: got.append(step) if tool == "aim" or step < 2 else 1 / 0  # noqa: E731
        return SimpleNamespace(log=log, finish=lambda: None)

    monkeypatch.setattr(Trackers, "_start", start)
    trackers = Trackers(
        ["aim", "mlflow", "wandb"],
        name="t",
        run_dir=tmp_path,
        config={},
        events=EventLog(tmp_path / "events.jsonl"),
    )
    for step in (1, 2, 3):
        trackers.log({"loss": 1.0}, step)
    trackers.finish()
    assert got == [1, 1, 2, 3]
    reasons = [event["reason"] for event in lines(tmp_path / "events.jsonl")]
    assert reasons == ["mlflow: no server: switched off", "wandb: division by zero: switched off"]


def test_a_tracker_that_hangs_does_not_hold_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    stuck = SimpleNamespace(log=lambda values, step: gate.wait(20), finish=lambda: None)
    monkeypatch.setattr(Trackers, "_start", lambda self, tool: stuck)
    monkeypatch.setattr(trackers_module, "FINISH_SECONDS", 0.1)
    trackers = Trackers(
        ["aim"], name="t", run_dir=tmp_path, config={}, events=EventLog(tmp_path / "events.jsonl")
    )
    trackers.log({"loss": 1.0}, 1)
    trackers.finish()
    gate.set()
    assert "not finished within 0.1 s: aim" in lines(tmp_path / "events.jsonl")[0]["reason"]


def test_flat() -> None:
    assert flat({"loss": 1, "eval": {"a": {"bpb": 2}}}) == {"loss": 1, "eval/a/bpb": 2}
