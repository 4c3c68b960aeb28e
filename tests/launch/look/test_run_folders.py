"""Commands on what is no run folder, or one without checkpoints."""

import json
from pathlib import Path

import pytest

from launch import cli
from whole_runs import failure


def test_checkpoints_of_a_run_without_any(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert cli.main(["checkpoint", "list", str(tmp_path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"run": str(tmp_path), "checkpoints": []}
    assert failure(capfd, "checkpoint", "verify", str(tmp_path)) == (
        1,
        f"error: {tmp_path} has no checkpoint\n",
    )


def test_what_is_no_run_folder(capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path) -> None:
    assert failure(capfd, "checkpoint", "list", config) == (
        2,
        f"error: {config} is a file in no run folder: give a run folder such as runs/tiny\n",
    )
    code, err = failure(capfd, "checkpoint", "list", str(tmp_path / "corpus"))
    assert code == 2 and "is no run folder: it has no config.yaml" in err
    code, err = failure(capfd, "data", "inspect", str(tmp_path / "corpus"), "--sequence", "3")
    assert code == 2 and "a corpus alone has no order" in err
