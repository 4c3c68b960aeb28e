"""The process of `germinal generate`: what it prints, and one line for each mistake."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trained_runs import flip_a_byte, make_trained_run
from trainer.checkpoint import folder as checkpoints
from trainer.generate.command import main


def test_a_reader_that_has_seen_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trained_run(tmp_path / "run", steps=(2,))
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert main([str(tmp_path / "run"), "--prompt", "ab", "--max-tokens", "3"]) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


def test_the_command_prints_utf8_and_passes_over_a_damaged_checkpoint(tmp_path: Path) -> None:
    make_trained_run(tmp_path / "run")
    newest = checkpoints.step_folder(tmp_path / "run" / "checkpoints", 2)
    flip_a_byte(newest / "rank-00000.safetensors")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trainer.generate.command",
            tmp_path / "run",
            "--prompt",
            "é",
            "--max-tokens",
            "5",
        ],
        capture_output=True,
        timeout=120,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8").startswith("é")
    assert done.stderr.decode().startswith("passed over step 2: ") and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "nowhere: no such run folder"),
        (["empty"], 1, "has no checkpoint to read"),
        (["empty", "--step", "4"], 2, "--step 4: empty has no checkpoint of that step; those there: []"),
        (["damaged", "--step", "3"], 1, "damaged: its bytes"),
        (["damaged"], 1, "none of its 1 verifies"),
        (["empty", "--top-p", "0"], 2, "--top-p 0.0"),
        (["empty", "--temperature", "-1"], 2, "--temperature -1.0"),
        (["empty", "--max-tokens", "0"], 2, "--max-tokens 0"),
        (["empty", "--seed", "9" * 20], 2, "--seed 9"),
        (["empty", "--prompt", "ab\udcff"], 2, "--prompt: not UTF-8 from character 2 on"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_trained_run(tmp_path / "empty", steps=())
    make_trained_run(tmp_path / "damaged", steps=(3,))
    flip_a_byte(checkpoints.step_folder(tmp_path / "damaged" / "checkpoints", 3) / "rank-00000.safetensors")
    assert main(arguments) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
