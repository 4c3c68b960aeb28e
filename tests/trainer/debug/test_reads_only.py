"""`--debug` writes nothing into the run, and works while the run itself trains."""

import json
import shutil
from pathlib import Path

import pytest
from debugged import looked_into, opened

from common.lock import FolderLock
from trainer.checkpoint import folder as folders
from trainer.debug.command import main


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time of change and bytes, and every folder's time."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *sorted(folder.rglob("*")))
    }


def test_the_run_is_left_as_it_is_while_another_process_holds_it(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = trained.parent / "run"
    lock = FolderLock.take(run)
    try:
        before = contents(run)
        assert main(["--out", str(tmp_path / "out"), str(trained)]) == 0
        assert contents(run) == before
    finally:
        lock.release()
    said = capfd.readouterr().out
    assert "the weights of step 4 " in said and "step 5: loss " in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "batch.json",
        "statistics.csv",
        "statistics.png",
    }
    batch = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert batch["first_sequence"] == 32 and all(
        piece["in_batch"] for piece in batch["sequences"][0]["pieces"]
    )
    assert main(["--out", str(run / "out"), str(trained)]) == 2
    assert "lies in the run folder" in capfd.readouterr().err


def test_a_step_after_a_checkpoint_is_the_step_of_the_run(trained: Path) -> None:
    lines = (trained.parent / "run" / "metrics.jsonl").read_text().splitlines()
    third = json.loads(lines[2])
    assert third["step"] == 3
    with opened(trained, step=2) as run:
        _, said = looked_into(run)
    assert any(
        line.startswith(f"step 3: loss {third['loss']:.4f}, gradient norm {third['grad_norm']:.4g}")
        for line in said
    )
    with (
        pytest.raises(ValueError, match=r"--step 3: .* has no checkpoint of that step; those there: 4, 2"),
        opened(trained, step=3),
    ):
        pass


def test_a_checkpoint_that_the_run_removes_meanwhile_is_passed_over(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.debug import session

    honest, calls = session.load_state, []

    def gone_once(at: Path, *rest: object) -> object:
        calls.append(at.name)
        if len(calls) == 1:  # as if retention had removed it, and a newer one were there
            monkeypatch.setattr(folders, "steps", lambda root: [2])
            raise RuntimeError(f"{at}: missing")
        return honest(at, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "load_state", gone_once)
    with opened(trained) as run:
        assert run.state.step == 2
    assert calls == ["step-000000004", "step-000000002"]


def test_another_engine_is_refused_with_the_remedy(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained), "parallel.engine=deepspeed"]) == 2
    assert "add parallel.engine=torch" in capfd.readouterr().err


def test_a_damaged_checkpoint_is_one_line_and_the_older_one_is_read(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained.parent / "run", copy)
    words = ["--rows", "0", f"--out={tmp_path / 'out'}", str(trained), f"run_dir={copy}"]
    part = copy / "checkpoints/step-000000004/rank-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert main(["--step", "4", *words]) == 1
    said = capfd.readouterr().err.splitlines()
    assert (
        said[-1].startswith("error: ")
        and "damaged" in said[-1]
        and not any("Traceback" in one for one in said)
    )
    before = contents(copy)
    assert main(words) == 0
    assert "the weights of step 2 " in capfd.readouterr().out
    assert contents(copy) == before
