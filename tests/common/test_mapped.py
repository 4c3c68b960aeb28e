"""Mapped files: changes are noticed, descriptors given back, and a SIGBUS ends with one line."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.mapped_file import MappedFile


def test_a_version_grows_when_the_file_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100)
    mapped = MappedFile(path)
    seen = [mapped.version(), mapped.version()]
    time.sleep(0.02)  # the kernel's clock for time stamps ticks every few milliseconds
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and cp -p do
    seen += [mapped.version(), mapped.version()]
    path.unlink()
    path.write_bytes(b"another file")
    seen += [mapped.version()]
    assert seen == [0, 0, 1, 1, 1]
    assert bytes(mapped.view[:2]) == b"ba"


def test_a_mapped_file_takes_one_descriptor_and_gives_all_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100)
    gc.collect()  # or what another test has left would be closed meanwhile
    before = len(os.listdir("/dev/fd"))
    mapped = [MappedFile(path) for _ in range(5)]
    assert len(os.listdir("/dev/fd")) == before + 5
    view = mapped[0].view[10:20]
    mapped.clear()
    assert len(os.listdir("/dev/fd")) == before
    assert bytes(view) == b"a" * 10 and view.readonly  # whoever looks keeps the bytes
    if sys.platform == "linux":
        assert Path("/proc/self/maps").read_text().count(str(path)) == 1
        del view
        assert str(path) not in Path("/proc/self/maps").read_text()


def test_too_many_open_files_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mapped: list[MappedFile] = []
    said = "no error"
    first_free = os.open(path, os.O_RDONLY)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + 5, hard))
    try:
        while len(mapped) < 100:
            mapped.append(MappedFile(path))
    except RuntimeError as error:
        said = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert re.fullmatch(
        rf"{path} cannot be opened: this process may have \d+ files open .*`ulimit -n`.*", said
    )


CUT_SHORT = """
import os, sys
from pathlib import Path
from common.mapped_file import map_file
path = Path(sys.argv[1])
view = map_file(path)
os.truncate(path, 10)
bytes(view[8000:9000])
"""
ELSEWHERE = """
import mmap, os, sys
from pathlib import Path
from common.mapped_file import map_file
path = Path(sys.argv[1])
view = map_file(path)
with open(sys.argv[2], "r+b") as file:
    other = mmap.mmap(file.fileno(), 0)
    os.truncate(sys.argv[2], 10)
    other[8000:9000]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the handler is for Linux")
def test_a_bus_error_is_one_line_where_the_file_is_ours(tmp_path: Path) -> None:
    for name in ("ours", "other"):
        (tmp_path / name).write_bytes(bytes(20_000))
    script = [sys.executable, "-c"]
    done = subprocess.run([*script, CUT_SHORT, tmp_path / "ours"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path / 'ours'} was cut short while it was read, at byte 8000: restore it; a run then "
        "goes on from its last checkpoint\n"
    )
    (tmp_path / "ours").write_bytes(bytes(20_000))
    reader, unread = os.pipe()
    os.close(reader)
    unheard = subprocess.run([*script, CUT_SHORT, tmp_path / "ours"], stderr=unread, timeout=60)
    os.close(unread)
    assert unheard.returncode == 1
    (tmp_path / "ours").write_bytes(bytes(20_000))
    other = [*script, ELSEWHERE, tmp_path / "ours", tmp_path / "other"]
    assert subprocess.run(other, capture_output=True, timeout=60).returncode == -signal.SIGBUS
