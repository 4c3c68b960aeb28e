"""The folder of an export where the disk is full, read-only, or not there yet."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.files import write_durably
from trained_runs import make_trained_run
from trainer.export.export import export
from trainer.export.new_folder import new_folder


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_folders_above_are_made_and_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    make_trained_run(tmp_path / "run")
    out = tmp_path / "a" / "b" / "out"
    options: dict[str, Any] = {"step": None, "dtype": "fp32", "shard_bytes": 10**9}
    message = rf"^--out {out}: File too large: make room and run the same command again, or give a folder on"
    with files_of_at_most(20_000), pytest.raises(RuntimeError, match=message):
        export(tmp_path / "run", out, **options)
    assert list(out.parent.iterdir()) == []
    export(tmp_path / "run", out, **options)
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, *args: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    message = rf"^--out {tmp_path}/x: {os.strerror(number)}: give a folder that you can write to$"
    with pytest.raises(ValueError, match=message), new_folder(tmp_path / "x"):
        pass


def test_a_file_of_the_run_that_cannot_be_read_is_not_laid_at_the_folder_s_door(tmp_path: Path) -> None:
    with pytest.raises(PermissionError) as caught, new_folder(tmp_path / "x"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "run" / "state.json"))
    assert "--out" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_file_in_it_that_cannot_be_written_is(tmp_path: Path) -> None:
    message = r"^--out .*/x: .*/a/config\.json: Not a directory: give a folder that you can write to$"
    with pytest.raises(ValueError, match=message):
        write_below_a_file(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def write_below_a_file(out: Path) -> None:
    with new_folder(out) as draft:
        write_durably(draft / "a", b"")
        write_durably(draft / "a" / "config.json", b"")
