"""An export that is interrupted leaves nothing behind, and removes what a killed one has left."""

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from trained_runs import make_trained_run
from trainer.export import command
from trainer.export import export as exports
from trainer.process.interrupts import LeaveAtOnce


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_trained_run(tmp_path / "run", steps=(2,))
    return tmp_path


@pytest.fixture
def at_once() -> Iterator[LeaveAtOnce]:
    signals = LeaveAtOnce("the end", lost="").begin()
    yield signals
    signals.end()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_is_one_line_and_leaves_nothing(
    number: signal.Signals,
    code: int,
    home: Path,
    at_once: LeaveAtOnce,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, drafts = exports.write_weights, []

    def interrupted(folder: Path, *arguments: object, **keys: object) -> object:
        drafts.append(folder)
        done = real(folder, *arguments, **keys)  # type: ignore[arg-type]
        os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(exports, "write_weights", interrupted)
    out = home / "out"
    assert command.main([str(home / "run"), "--out", str(out)], at_once) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{out} was not written" in said
    assert drafts[0].parent == home and sorted(one.name for one in home.iterdir()) == ["run"]


def test_drafts_of_killed_exports_are_removed_and_those_of_others_stay(home: Path) -> None:
    left, at_work, other = (
        home / f".tmp-{name}-{digit * 12}" for name, digit in (("out", "0"), ("out", "1"), ("outer", "2"))
    )
    for draft in (left, at_work, other):
        draft.mkdir()
        (draft / "model.safetensors").write_bytes(b"part")
    lock = os.open(at_work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        exports.export(home / "run", home / "out", step=None, dtype="fp32", shard_bytes=10**9)
    finally:
        os.close(lock)
    assert {one.name for one in home.iterdir()} == {"run", "out", at_work.name, other.name}
