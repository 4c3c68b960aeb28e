"""Of two starts of one comparison the second is refused; one that was left behind writes nothing more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.exit_codes import FAILED, STOPPED
from common.lock import FolderLock
from few_trials import write_comparison
from parallel.world.runtime import Runtime
from trainer.config import transferring
from trainer.config.transferring import Transfer
from trainer.folder.fence import EPOCH, Fence
from trainer.transfer import command, plan, trial
from whole_runs import failure

TAKEN = r"few was taken over by a later start of the run: process \d+ on .*, start 2; this is start 1"


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a comparison, but for those by which it is held."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".epoch"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def begin_held(folder: Path, corpus: Path, runtime: Runtime) -> Transfer:
    """A comparison that a start holds, with its labels and random weights drawn."""
    config = write_comparison(folder, corpus, labels=[4], methods=["full"], rates={"full": [1.0e-2]})
    found = transferring.load(config, (), taken)
    command.begin(found, runtime)
    return found


def taken(folder: Path) -> Fence:
    fence = Fence(folder)
    fence.take()
    return fence


def without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    take: Callable[..., FolderLock] = FolderLock.take
    monkeypatch.setattr(FolderLock, "take", lambda folder: take(folder, patience_seconds=0.0))


def test_a_second_start_is_refused_and_changes_nothing(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_comparison(tmp_path, corpus)
    folder = transferring.load(config).cfg.folder
    (folder / "labels").mkdir()
    (folder / "labels/drawn").touch()
    without_patience(monkeypatch)
    lock = FolderLock.take(folder)
    before = files(folder)
    try:  # not begun yet: a start that may would remove what was drawn for another `validation`
        code, line = failure(capfd, "transfer", str(write_comparison(tmp_path, corpus, validation=9)))
    finally:
        lock.release()
    assert code == STOPPED and f"{folder} is in use by process " in line
    assert files(folder) == before


def test_one_that_was_left_behind_ends_before_its_next_write(
    tmp_path: Path, corpus: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = begin_held(tmp_path, corpus, runtime)
    each = plan.Trial(plan.RANDOM, "full", 4, 0, 1.0e-2, plan.HELDOUT)
    before: dict[str, bytes] = {}
    assemble = trial.assemble

    def taken_over(*arguments: Any, **more: Any) -> Any:
        run = assemble(*arguments, **more)
        taken(found.cfg.folder)
        before.update(files(found.cfg.folder))
        return run

    with monkeypatch.context() as patched:
        patched.setattr(trial, "assemble", taken_over)
        with pytest.raises(RuntimeError, match=TAKEN):
            trial.run_trial(each, found, runtime)
    assert before and files(found.cfg.folder) == before
    # Nor does it begin another one, which its successor may be at.
    other = plan.Trial(plan.RANDOM, "full", 4, 1, 1.0e-2, plan.HELDOUT)
    with pytest.raises(RuntimeError, match=TAKEN):
        trial.run_trial(other, found, runtime)
    assert not (trial.run_folder(other, found) / EPOCH).exists()
    assert files(found.cfg.folder) == before


def test_one_that_was_left_behind_draws_nothing(
    tmp_path: Path, corpus: Path, runtime: Runtime, capfd: pytest.CaptureFixture[str]
) -> None:
    found = transferring.load(write_comparison(tmp_path, corpus), (), taken)
    assert found.fence is not None
    taken(found.cfg.folder)
    before = files(found.cfg.folder)
    mark, config = f"--mark={found.fence.mark}", str(found.cfg.folder / transferring.RECORD)
    assert command.main(["begin", mark, config]) == FAILED
    assert "was taken over by a later start" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match=TAKEN):
        transferring.load(config, ["validation=9"], lambda folder: found.fence)
    assert files(found.cfg.folder) == before
