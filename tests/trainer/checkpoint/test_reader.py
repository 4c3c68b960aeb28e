"""Mapping a checkpoint's files."""

import json
import os
import re
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.engine import Chunk
from trainer.checkpoint import store
from trainer.checkpoint.manifest import Manifest, StoredChunk, TensorEntry
from trainer.checkpoint.pieces.files import FileEntry, Listed
from trainer.checkpoint.reader import Reader

LARGE = 1 << 30


def read_end(context: Any, folder: Path) -> list[float]:
    """The last two numbers of a large file, by a process that may have 64 MiB more memory of its own.

    Linux counts private writable mappings into that limit (setrlimit(2), RLIMIT_DATA), as it does when it
    refuses one that is larger than the machine's memory.
    """
    stored = StoredChunk(("f",), "t", (LARGE // 4,), (0,))
    entries = {"t": TensorEntry("F32", (LARGE // 4,), (stored,))}
    size = os.path.getsize(folder / "f")
    manifest = Manifest(step=1, sequences=8, files=Listed({"f": FileEntry(size, "")}), tensors=entries)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(status.partition("VmData:")[2].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), before[1]))
    try:
        return Reader(folder, manifest).read("t", stored)[-2:].tolist()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_a_file_that_does_not_fit_into_memory_is_read(ranks: Any, tmp_path: Path) -> None:
    header = {"t": {"dtype": "F32", "shape": [LARGE // 4], "data_offsets": [0, LARGE]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / "f").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + LARGE)  # no block of it is on the disk
        file.seek(-4, os.SEEK_END)
        file.write(struct.pack("<f", 2.5))
    assert ranks(1).run(read_end, tmp_path) == [[0.0, 2.5]]


def small(folder: Path) -> Manifest:
    """A file of 4096 numbers, and the manifest that lists it."""
    text = json.dumps({"t": {"dtype": "F32", "shape": [4096], "data_offsets": [0, 4 * 4096]}}).encode()
    (folder / "f").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * 4096))
    entries = {"t": TensorEntry("F32", (4096,), (StoredChunk(("f",), "t", (4096,), (0,)),))}
    files = Listed({"f": FileEntry((folder / "f").stat().st_size, "")})
    return Manifest(step=1, sequences=8, files=files, tensors=entries)


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path) -> None:
    manifest = small(tmp_path)
    tensor = torch.ones(4096)
    chunk = Chunk("t", tensor, (4096,), (0,), owned=False)
    store.load(tmp_path, [chunk], manifest)
    assert not tensor.any()
    reader = Reader(tmp_path, manifest)
    reader.read("t", manifest.tensors["t"].pieces[0])
    reader.check()
    time.sleep(0.02)  # the kernel's clock for time stamps ticks every few milliseconds
    with (tmp_path / "f").open("r+b") as file:
        file.write(b"\1")
    with pytest.raises(RuntimeError, match=rf"^{tmp_path / 'f'} was written to while it was read: stop the "):
        reader.check()


CUT_SHORT = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_reader import Reader, small
folder = Path(sys.argv[1])
manifest = small(folder)
stored = Reader(folder, manifest).read("t", manifest.tensors["t"].pieces[0])
os.truncate(folder / "f", 10)
stored.sum()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the handler is for Linux")
def test_a_checkpoint_that_is_cut_short_while_it_is_read_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CUT_SHORT, tmp_path, Path(__file__).parent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"error: {tmp_path / 'f'} was cut short while it was read, at byte \d+: .*\n", done.stderr
    )
