"""A run that trains meanwhile removes the checkpoint that is being read: the newer one is read then."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from parallel.world import runtime as runtimes
from trained_runs import make_trained_run
from trainer.checkpoint import folder as checkpoints
from trainer.export import export as exports
from trainer.trained import on_ranks
from trainer.trained.checkpoints import newest_checkpoint


def exported(run: Path) -> int:
    return exports.export(run, run / "out", step=None, dtype="fp32", shard_bytes=10**9).step


def opened(run: Path) -> int | None:
    runtime = runtimes.start()
    with ExitStack() as stack:
        stack.callback(runtime.stop)
        return on_ranks.open_run(run, (), runtime, stack).step


def found(run: Path) -> int:
    return int(newest_checkpoint(run).name.removeprefix("step-"))


@pytest.mark.parametrize(
    ("read", "where", "name"),
    [
        (found, checkpoints, "verify"),
        (exported, exports, "read_manifest"),
        (exported, exports, "whole_weights"),
        (opened, on_ranks, "load_prompting"),
        (opened, on_ranks, "fill_weights"),
    ],
)
def test_the_newer_checkpoint_is_read(
    read: Callable[[Path], int],
    where: Any,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, later = tmp_path / "run", tmp_path / "later"
    make_trained_run(run, steps=(2,))
    make_trained_run(later, steps=(3,))
    real = getattr(where, name)

    def late(*arguments: Any, **keys: Any) -> Any:
        if later.exists():
            newer = checkpoints.step_folder(later / "checkpoints", 3)
            os.rename(newer, checkpoints.step_folder(run / "checkpoints", 3))
            shutil.rmtree(later)
            shutil.rmtree(checkpoints.step_folder(run / "checkpoints", 2))
        return real(*arguments, **keys)

    monkeypatch.setattr(where, name, late)
    assert read(run) == 3
    assert "passed over" not in capsys.readouterr().err
