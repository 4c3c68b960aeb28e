"""The process of `germinal generate`: what it prints, and one line for each mistake."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trained_runs import flip_a_byte, make_trained_run
from trainer.checkpoint import folder as checkpoints
from trainer.generate.command import main
from whole_runs import failure, germinal


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


def test_a_file_of_prompts_is_written_as_one_by_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_trained_run(tmp_path / "run")
    prompts = ["ab", "def é", "", 'a "quoted" text', "x" * 50]
    lines = ["ab", json.dumps({"prompt": "def é"}), json.dumps(""), json.dumps(prompts[3]), "x" * 50]
    (file := tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n")
    options = ["--max-tokens=30", "--temperature=0"]
    alone = []
    for prompt in prompts:
        assert main([str(tmp_path / "run"), f"--prompt={prompt}", *options]) == 0
        alone.append(capfd.readouterr().out.removesuffix("\n").removeprefix(prompt))
    for batch in (1, 3, 8):
        assert main([str(tmp_path / "run"), f"--prompts={file}", f"--batch={batch}", *options]) == 0
        found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [one["prompt"] for one in found] == prompts
        assert [one["text"] for one in found] == alone
    assert len(set(alone)) > 1


@pytest.mark.slow
def test_ranks_that_share_the_model_write_the_same(tmp_path: Path) -> None:
    make_trained_run(tmp_path / "run", tied=False)
    (file := tmp_path / "prompts.txt").write_text("ab\ndef\n")
    asked = ("generate", tmp_path / "run", "--prompts", file, "--max-tokens", "12")
    alone = germinal(*asked)
    shared = germinal(*asked, "--nproc", "2")
    assert alone.returncode == shared.returncode == 0, shared.stderr
    assert shared.stdout == alone.stdout and len(alone.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "nowhere"], "--prompts nowhere is not there"),
        (["--nproc", "2", "parallel.pp=2"], "a text is written by tensor parallelism alone"),
        (["--nproc", "3"], "not divisible by parallel.tp=3"),
    ],
)
def test_a_wrong_command_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    make_trained_run(tmp_path / "run", steps=(1,))
    code, line = failure(capfd, "generate", str(tmp_path / "run"), *arguments)
    assert code == 2 and message in line


@pytest.mark.parametrize(
    ("line", "message"),
    [("", "has no line"), ('{"text": "a"}', 'line 1: has no "prompt"'), ('{"prompt', "line 1: ")],
)
def test_a_wrong_file_of_prompts_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    make_trained_run(tmp_path / "run", steps=(1,))
    (file := tmp_path / "prompts.txt").write_text(line)
    assert main([str(tmp_path / "run"), "--prompts", str(file)]) == 2
    assert message in capfd.readouterr().err
