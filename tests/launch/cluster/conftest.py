"""A cluster of fake programs: what they were called with is kept, what they answer is set by the test."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import cli

RECORDS = """#!/bin/bash
here=$(dirname "$0")
[ -f "$here/{name}.sleep" ] && exec sleep "$(cat "$here/{name}.sleep")"
printf '%s\\0' "$@" >> "$here/{name}.called"; printf '\\n\\0' >> "$here/{name}.called"
{body}
[ -f "$here/{name}.error" ] && {{ cat "$here/{name}.error" >&2; exit 1; }}
[ -f "$here/{name}.out" ] && cat "$here/{name}.out"
exit 0
"""
# sbatch's ids count up from 101.
COUNTS = """[ -f "$here/{name}.error" ] || echo $((100 + $(tr -cd '\\n' < "$here/{name}.called" | wc -c)))"""


class FakeSlurm:
    """sbatch, squeue, scontrol, scancel and sinfo in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sinfo"):
            body = COUNTS.format(name=name) if name == "sbatch" else ""
            (folder / name).write_text(RECORDS.format(name=name, body=body))
            (folder / name).chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call."""
        file = self.folder / f"{name}.called"
        text = file.read_bytes().decode("utf-8", "surrogateescape") if file.exists() else ""
        return [call.split("\0")[:-1] for call in text.split("\n\0")[:-1]]

    def answers(self, name: str, text: str) -> None:
        (self.folder / f"{name}.out").write_text(text)

    def fails(self, name: str, text: str) -> None:
        (self.folder / f"{name}.error").write_text(text)

    def hangs(self, name: str) -> None:
        (self.folder / f"{name}.sleep").write_text("60")

    def queue(self, *jobs: Sequence[str]) -> None:
        """What squeue shows: (id, state, reason) each."""
        lines = (f"{job}|{state}|{reason}|N/A|1:00|n[1-2]|2\n" for job, state, reason in jobs)
        self.answers("squeue", "".join(lines))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Fake programs on the PATH; the working directory is `tmp_path`."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return FakeSlurm(folder)


class Command:
    """`germinal …` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str | os.PathLike[str]) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        self._capsys.readouterr()
        code = cli.main([os.fspath(word) for word in words])
        done = self._capsys.readouterr()
        return code, done.out, done.err

    def refusal(self, *words: str | os.PathLike[str]) -> tuple[int, str]:
        """Return the exit code and the one line of an error."""
        code, _, err = self(*words)
        lines = [line for line in err.splitlines() if not line.startswith(("warning:", "cluster file:"))]
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        return code, lines[0]


@pytest.fixture
def germinal(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)
