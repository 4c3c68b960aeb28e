"""A small Parquet file whose pages grow to gigabytes takes no memory: its rows are read few at a time, or it
is refused before anything of it is decompressed.
"""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.parquet_pages import repeated_bytes

READ = """
import sys, resource, pyarrow.parquet
from data.readers import documents; from data.recipe import Recipe
from data.sources import expand
from data.tally import Tally; from data.units import plan_units
recipe = Recipe()
(unit,) = plan_units(expand(sys.argv[1:], recipe), 1 << 40, recipe)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began, count = peak(), 0
try:
    for document in documents(unit.pieces[0], recipe, Tally()):
        count += 1
    print(count)
except RuntimeError as error:
    print(error)
assert peak() - began < 256 << 10, f"{peak() - began} KiB more"
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"use_dictionary": True}, r"^400$"),
        (
            {"use_dictionary": False},
            r"a page of column text grows from [\d,]+ bytes to 419,43\d,\d+: leave the",
        ),
    ],
)
def test_a_page_bomb_takes_no_memory(tmp_path: Path, how: dict, said: str) -> None:
    """400 rows of one MiB each, all the same: kept once, or each by itself in one page."""
    write = (  # by a process of its own, for a child's peak begins with its parent's
        "import pyarrow as pa, pyarrow.parquet\n"
        "table = pa.table({'text': ['a' * (1 << 20)] * 400})\n"
        f"pa.parquet.write_table(table, 'a.parquet', compression='zstd', data_page_size=1 << 30, **{how})\n"
    )
    subprocess.run([sys.executable, "-c", write], cwd=tmp_path, check=True)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    command = [sys.executable, "-c", READ, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    assert re.search(said, done.stdout), done.stdout


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
