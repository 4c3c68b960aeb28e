"""Experiment trackers: off means not imported, and one that fails is an event."""

import json
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from trainer.config.sections import TrackConfig
from trainer.folder import run_folder
from trainer.metrics import trackers as trackers_module
from trainer.metrics.trackers import Trackers, flat, wandb_mode
from trainer.record.events import EventLog


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine importing a tool alone may take longer than a run would wait for it."""
    monkeypatch.setattr(trackers_module, "FINISH_SECONDS", 300.0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_off_means_not_imported() -> None:
    names = ("wandb", "accelerate", "tensorboard", "matplotlib", "rich")
    code = f"import sys, trainer.metrics.meter; print([m for m in {names} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    events = EventLog(tmp_path / "events.jsonl")
    track = TrackConfig(tools=["jsonl", "tensorboard"])
    config = {"optim": {"lr": 0.25, "betas": [0.9, 0.95]}}
    trackers = Trackers(track, name="t", run_dir=tmp_path, config=config, events=events)
    for step in range(1, 4):
        trackers.log({"step": step, "loss": 1 / step}, step)
    trackers.log({"step": 3, "eval": {"held": {"bits_per_byte": 1.5}}}, 3)
    trackers.finish()
    assert not (tmp_path / "events.jsonl").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "tensorboard" / "t"))
    read.Reload()
    assert read.Tags()["scalars"] == ["train/loss", "eval/held/bits_per_byte"]  # and no step
    points = [(point.step, round(point.value, 3)) for point in read.Scalars("train/loss")]
    assert points == [(1, 1.0), (2, 0.5), (3, 0.333)]
    (shown,) = read.Tensors("config/text_summary")
    text = shown.tensor_proto.string_val[0].decode()
    assert yaml.safe_load(text) == config
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


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: after 7 bytes of wandb's, LevelDB's log format (doc/log_format.md there).

    Blocks of 32 KiB of pieces: crc (4 bytes), length (2), type (1 whole, 2 first, 3 middle, 4 last).
    """
    at, record = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # too short for a header
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_run(folder: Path, track: TrackConfig) -> tuple[Any, list[dict[str, Any]]]:
    """What wandb wrote to its file: the run, and the rows of its history."""
    from wandb.proto.wandb_internal_pb2 import Record

    trackers = Trackers(
        track, name="t", run_dir=folder, config={"seed": 5}, events=EventLog(folder / "events.jsonl")
    )
    trackers.log({"step": 1, "loss": 1.5, "tokens": 64}, 1)
    trackers.log({"step": 2, "eval": {"held": {"loss": 2.5}}}, 2)
    trackers.finish()
    assert not (folder / "events.jsonl").exists(), (folder / "events.jsonl").read_text()
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60  # wandb's own process writes the file
    while True:
        run, rows = None, []
        for data in leveldb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                run = record.run
            if record.HasField("history"):
                items = {
                    "/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item
                }
                rows.append({key: value for key, value in items.items() if key in ("_step", *SCALARS)})
        if (run is not None and len(rows) == len(ROWS)) or time.monotonic() > deadline:
            return run, rows
        time.sleep(0.1)


SCALARS = ("step", "loss", "train/loss", "train/tokens", "eval/held/loss", "train/step", "eval/step")
ROWS = [{"_step": 1, "train/loss": 1.5, "train/tokens": 64}, {"_step": 2, "eval/held/loss": 2.5}]
VARIABLES = {
    "WANDB_PROJECT": "its project",
    "WANDB_ENTITY": "its-team",
    "WANDB_RUN_GROUP": "its group",
    "WANDB_TAGS": "its,tags",
    "WANDB_NOTES": "its notes",
    "WANDB_NAME": "its name",
}


@pytest.fixture
def wandb_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no variable; and whatever wandb keeps for the process forgotten before and after."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (*VARIABLES, "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_alone")
def test_wandb_gets_what_the_config_states_whatever_the_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    track = TrackConfig(["wandb"], "my project", "my-team", "my group", ["my", "tags"], "my notes")
    run, rows = wandb_run(tmp_path, track)
    assert (run.project, run.entity, run.run_group) == ("my project", "my-team", "my group")
    assert (list(run.tags), run.notes) == (["my", "tags"], "my notes")
    assert [(item.key, item.value_json) for item in run.config.update if item.key == "seed"] == [
        ("seed", "5")
    ]
    assert rows == ROWS


@pytest.mark.usefixtures("wandb_alone")
def test_wandb_reads_its_variables_where_the_config_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    run, _ = wandb_run(tmp_path, TrackConfig(["wandb"]))
    assert (run.project, run.entity, run.run_group) == ("its project", "its-team", "its group")
    assert (list(run.tags), run.notes, run.display_name) == (["its", "tags"], "its notes", "its name")


@pytest.mark.usefixtures("wandb_alone")
def test_wandb_without_either_has_a_project(tmp_path: Path) -> None:
    run, rows = wandb_run(tmp_path, TrackConfig(["wandb"]))
    assert (run.project, run.display_name, list(run.tags)) == ("germinal", "t", [])
    assert run.run_id == run_folder.identity(tmp_path), (
        "so it is the same in a moved folder, and not in a copy"
    )
    assert rows == ROWS


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
        TrackConfig(tools=["aim", "mlflow", "wandb"]),
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
        TrackConfig(tools=["aim"]),
        name="t",
        run_dir=tmp_path,
        config={},
        events=EventLog(tmp_path / "events.jsonl"),
    )
    trackers.log({"loss": 1.0}, 1)
    trackers.finish()
    gate.set()
    assert "not finished within 0.1 s: aim" in lines(tmp_path / "events.jsonl")[0]["reason"]


def test_flat() -> None:
    assert flat({"loss": 1, "eval": {"a": {"bpb": 2}}}) == {"loss": 1, "eval/a/bpb": 2}
