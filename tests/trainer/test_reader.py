"""Mapping a checkpoint's files."""

import json
import os
import resource
import struct
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import FileEntry, Manifest, Piece, TensorEntry
from trainer.checkpoint.reader import Reader

LARGE = 1 << 30


def read_end(context: Any, folder: Path) -> list[float]:
    """The last two numbers of a large file, by a process that may have 64 MiB more memory of its own.

    Linux counts private writable mappings into that limit (setrlimit(2), RLIMIT_DATA), as it does when it
    refuses one that is larger than the machine's memory.
    """
    piece = Piece("f", "t", (LARGE // 4,), (0,))
    entries = {"t": TensorEntry("F32", (LARGE // 4,), (piece,))}
    size = os.path.getsize(folder / "f")
    manifest = Manifest(step=1, sequences=8, files={"f": FileEntry(size, "")}, tensors=entries)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(status.partition("VmData:")[2].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), before[1]))
    try:
        return Reader(folder, manifest).piece("t", piece)[-2:].tolist()
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
