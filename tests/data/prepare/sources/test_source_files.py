"""Which files a source names, and how they are cut into units."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from data.prepare.recipe import Recipe
from data.prepare.sources.sources import InputFile, expand
from data.prepare.units import cut_into_units


def test_names_globs_braces_lists_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "a/one.py",
        "a/two.txt",
        "a/.git/config",
        "a/__pycache__/x.pyc",
        "b/tests/three.py",
        "b/four.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "list").write_text("a\n\nb/four.py\n")
    monkeypatch.chdir(tmp_path)

    def names(*specs: str, **recipe: object) -> list[str]:
        return [file.relative for file in expand(list(specs), Recipe(**recipe))]  # type: ignore[arg-type]

    assert names("a", "b") == ["one.py", "two.txt", "four.py", "tests/three.py"]
    assert names("a", include=["*.py"]) == ["one.py"]
    assert names("b", exclude=["tests"]) == ["four.py"]
    assert names("b", exclude=["tests/*"]) == ["four.py"]
    assert names("?/*.py") == ["a/one.py", "b/four.py"]
    assert names("**/*.py") == ["a/one.py", "b/four.py", "b/tests/three.py"]
    assert names("{a/one,b/four}.py") == ["one.py", "four.py"]
    assert names("@list") == ["one.py", "two.txt", "four.py"]
    for number in range(8, 12):
        (tmp_path / f"s-{number:02}.txt").write_text("x")
    assert names("s-{08..10}.txt") == ["s-08.txt", "s-09.txt", "s-10.txt"]
    with pytest.raises(ValueError, match=r"source b/no\.py is not there"):
        names("{a/one,b/no}.py")


def test_linked_folders_are_read_once_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    for name in ("in/a.txt", "elsewhere/b.txt", "elsewhere/deeper/c.txt", "out/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for link, target in (("in/latest", "elsewhere"), ("in/one", "elsewhere"), ("elsewhere/up", "in")):
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in/made").symlink_to(tmp_path / "out")

    def names(spec: str, **recipe: object) -> list[str]:
        return [f.relative for f in expand([spec], Recipe(**recipe), out=str(tmp_path / "out"))]  # type: ignore[arg-type]

    assert names(f"{tmp_path}/in") == ["a.txt", "latest/b.txt", "latest/deeper/c.txt"]
    (tmp_path / "in/gone.txt").symlink_to(tmp_path / "nothing")
    for spec in ("in", "in/*"):
        with pytest.raises(
            ValueError, match=r"in/gone.txt is a link to nothing: restore it, or leave it out"
        ):
            names(f"{tmp_path}/{spec}")
        assert "a.txt" in names(f"{tmp_path}/{spec}", exclude=["gone.*"])


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in/locked").mkdir(parents=True)
    (tmp_path / "in/a.txt").write_text("x")
    scan = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("locked"):  # root may read everything
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="locked"):
        expand([str(tmp_path / "in")], Recipe())


def test_files_side_by_side_and_cut(tmp_path: Path) -> None:
    files = []
    for n, size in enumerate([10, 10, 95, 250, 10]):
        (tmp_path / f"{n}").write_bytes(bytes(size))
        files.append(InputFile("s", str(tmp_path / f"{n}"), f"{n}", "jsonl", size))
    units = cut_into_units(files, 100, Recipe())
    assert [[(p.file.relative, p.start, p.end) for p in unit.ranges] for unit in units] == [
        [("0", 0, 10), ("1", 0, 10)],
        [("2", 0, 95)],
        [("3", 0, 100)],
        [("3", 100, 200)],
        [("3", 200, 250), ("4", 0, 10)],
    ]
