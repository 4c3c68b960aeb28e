"""A small Parquet file whose pages grow to gigabytes takes no memory: its rows are read few at a time, or it
is refused before anything of it is decompressed.
"""

import io
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data.prepare.readers.parquet_pages import repeated_bytes

READ = """
import sys, pyarrow.parquet
from data.prepare.readers.dispatch import documents; from data.prepare.recipe import Recipe
from data.prepare.sources.sources import expand
from data.prepare.tally import Tally; from data.prepare.units import cut_into_units
recipe = Recipe()
(unit,) = cut_into_units(expand(sys.argv[1:], recipe), 1 << 40, recipe)
peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
began, count = peak(), 0
try:
    for document in documents(unit.ranges[0], recipe, Tally()):
        count += 1
    print(count)
except RuntimeError as error:
    print(error)
assert peak() - began < 256 << 10, f"{peak() - began} KiB more"
"""


MEBIBYTE = "a" * (1 << 20)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (lambda: pa.DictionaryArray.from_arrays(np.zeros(400, np.int32), [MEBIBYTE]), r"^400$"),
        (
            lambda: pa.repeat(MEBIBYTE, 100),
            r"a page of column text grows from [\d,]+ bytes to 104,85\d,\d+: leave the",
        ),
    ],
    ids=["kept once", "each by itself in one page"],
)
def test_a_page_bomb_takes_no_memory(tmp_path: Path, texts: Callable[[], pa.Array], said: str) -> None:
    """Rows of one MiB each, all the same."""
    made = texts()
    pa.parquet.write_table(
        pa.table({"text": made}), tmp_path / "a.parquet", compression="zstd", data_page_size=1 << 30,
        use_dictionary=pa.types.is_dictionary(made.type), store_schema=False,
    )  # fmt: skip
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    command = [sys.executable, "-c", READ, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    assert re.search(said, done.stdout), done.stdout


class Counted(io.FileIO):
    """A file that counts the bytes read of it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        raw = super().read(size)
        self.taken += len(raw)
        return raw


def test_pages_whose_headers_hold_long_texts_are_not_read_for_them(tmp_path: Path) -> None:
    """Least and greatest value of each page, of up to 4 KiB each, are longer than the first look."""
    rows = [f"{n:06} " + "".join(random.Random(n).choices("abcdef ", k=4000)) for n in range(300)]
    pa.parquet.write_table(
        pa.table({"text": rows}), tmp_path / "a.parquet", use_dictionary=False, data_page_size=1 << 16
    )
    group = pa.parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0)
    with Counted(tmp_path / "a.parquet") as stream:
        assert repeated_bytes(stream, group.column(0)) == 0  # type: ignore[arg-type]
        assert 8_000 < stream.taken < group.column(0).total_compressed_size


def test_a_dictionary_at_byte_0_is_none(tmp_path: Path) -> None:
    """As some writers say it."""
    pa.parquet.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet", use_dictionary=False)
    column = pa.parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0)
    names = ("data_page_offset", "total_compressed_size", "encodings", "path_in_schema")
    said = {name: getattr(column, name) for name in names}
    said |= {"has_dictionary_page": False, "dictionary_page_offset": None}
    with open(tmp_path / "a.parquet", "rb") as stream:
        for others in ({}, {"has_dictionary_page": True, "dictionary_page_offset": 0}):
            assert repeated_bytes(stream, SimpleNamespace(**said | others)) == 0


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_the_headers_of_ordinary_pages_are_read(tmp_path: Path, version: str, compression: str) -> None:
    rows = [f"{n} " * (n % 50) for n in range(20_000)]
    table = pa.table({"text": rows, "ids": [[n, n + 1] for n in range(20_000)]})
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(
        table, path, compression=compression, data_page_version=version, data_page_size=1 << 12,
        write_page_checksum=True, use_dictionary=["text"],
    )  # fmt: skip
    group = pa.parquet.ParquetFile(path).metadata.row_group(0)
    with open(path, "rb") as stream:
        shared = {group.column(i).path_in_schema: repeated_bytes(stream, group.column(i)) for i in range(2)}
    assert shared["text"] > 100_000 and list(shared.values())[1] == 0
