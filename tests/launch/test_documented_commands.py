"""Every command that the documents and the configs show is one that exists, with options that exist."""

import re
import shlex
from pathlib import Path

import pytest

from launch import cli

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FILES += sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.yaml")])


def shown(file: Path, program: str) -> list[str]:
    """Lines that begin with `program`, behind a prompt or a comment sign or neither."""
    return re.findall(rf"^[#$ ]*(?:\.venv/bin/)?({program} [^\n]+)$", file.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_germinal_commands_parse(file: Path) -> None:
    for line in shown(file, "germinal"):
        cli.parse(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_make_targets_exist(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in shown(file, "make"):
        assert set(shlex.split(line, comments=True)[1:]) <= targets, line


def test_the_search_finds_what_it_should(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("```\n$ germinal trian x\nmake it\n```\n#   germinal train y  # so\nuse germinal train\n")
    assert shown(file, "germinal") == ["germinal trian x", "germinal train y  # so"]
    with pytest.raises(ValueError, match="did you mean train"):
        test_the_germinal_commands_parse(file)
    with pytest.raises(AssertionError):
        test_the_make_targets_exist(file)
