"""Sources on web servers and in object stores: what fails is tried again, and named in one line."""

import bz2
import gzip
import lzma
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from data.prepare.prepare import prepare
from read_sources import TEXTS, json_lines, read, texts_of, write_tar


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """An HTTP server of a folder, on a port that the system chose."""
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        """Answers the first requests for a file named flaky… with an error, later ones properly; sends no
        ranges of one named whole….
        """

        failures = 3

        def log_message(self, *_: object) -> None: ...

        def end_headers(self) -> None:
            if "whole" in self.path:
                self.send_header("Accept-Ranges", "none")
            super().end_headers()

        def do_GET(self) -> None:
            if "flaky" in self.path and Quiet.failures:
                Quiet.failures -= 1
                self.send_error(503)
            else:
                super().do_GET()

    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_over_http(tmp_path: Path, web: str) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "served/a.jsonl.gz").write_bytes(gzip.compress(json_lines(TEXTS)))
    write_tar(tmp_path / "served/b.tar", [{"__key__": "1", "txt": "in a tar"}])
    assert texts_of(read([f"{web}/a.jsonl.gz", f"{web}/b.tar"])[0]) == [*TEXTS, "in a tar"]
    with pytest.raises(ValueError, match=r"gone.jsonl cannot be reached"):
        read([f"{web}/gone.jsonl"])


def test_a_server_that_sends_no_ranges(tmp_path: Path, web: str) -> None:
    pytest.importorskip("aiohttp")
    packers: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}
    packers |= {".xz": lzma.compress, ".zst": zstandard.compress}
    texts = [f"{number} " + "x" * 2000 for number in range(500)]  # more than a look, packed small
    for suffix, pack in packers.items():
        (tmp_path / f"served/whole.jsonl{suffix}").write_bytes(pack(json_lines(texts)))
        assert texts_of(read([f"{web}/whole.jsonl{suffix}"])[0]) == texts


def test_a_server_that_fails_and_comes_back(
    tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    (tmp_path / "served/flaky.jsonl").write_bytes(json_lines(TEXTS))
    out = tmp_path / "out"
    report = prepare([f"{web}/flaky.jsonl"], out, tokenizer="bytes", workers=1, progress=False)
    assert report.counts["read"][0] == len(TEXTS)
    assert pauses and pauses == [1, 5, 25][: len(pauses)]


def test_a_server_that_fails_while_work_is_planned_is_one_line(tmp_path: Path, web: str) -> None:
    pytest.importorskip("aiohttp")
    pa.parquet.write_table(pa.table({"text": ["x"]}), tmp_path / "served/flaky.parquet")
    with pytest.raises(RuntimeError, match=r"^\S+/flaky.parquet cannot be read: \S+: 503.*$"):
        read([f"{web}/flaky.parquet"])


def test_an_object_store_by_name_by_folder_and_by_glob() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("one", "two"):
        store.pipe(f"/bucket/{name}.jsonl", json_lines([name]))
    assert texts_of(read(["memory://bucket/two.jsonl"])[0]) == ["two"]
    assert texts_of(read(["memory://bucket"], 5)[0]) == ["one", "two"]
    assert texts_of(read(["memory://bucket/*e.jsonl"])[0]) == ["one"]
    store.pipe("/bucket/tests/three.jsonl", json_lines(["three"]))
    for name in ("bucket", "bucket/**/*.jsonl"):
        assert texts_of(read([f"memory://{name}"], exclude=["tests"])[0]) == ["one", "two"]
        assert texts_of(read([f"memory://{name}"], include=["tests/*"])[0]) == ["three"]
    assert texts_of(read(["memory://bucket/tests/three.jsonl"])[0]) == ["three"]
