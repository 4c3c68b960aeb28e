"""A real HTTP server for tests of remote corpora, whose answers can be made to fail."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataConfig, Source
from data.stream.stream import Stream


class Handler(SimpleHTTPRequestHandler):
    """Serves files, ranges included, with the faults that the server lists.

    server.script: the faults of the next requests for a shard, in order: "", "403", "500", "die" (half of the
        answer), "outage" (the server stops for a second).
    server.busy: files whose next request gets 503.
    server.sent: file → the bytes of all answers.
    server.flips: file → whether the n-th arrival of one and the same request has flipped bits; the answer has
        the right length.
    """

    def do_GET(self) -> None:
        server: Any = self.server
        name = self.path.rsplit("/", 1)[-1]
        server.requests[name] += 1
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        if name in server.busy:
            server.busy.remove(name)
            self.send_error(503)
            return
        asked, status = self.headers.get("Range"), 200
        with path.open("rb") as file:
            if asked:
                first, last = asked.removeprefix("bytes=").split("-")
                file.seek(int(first))
                raw, status = file.read(int(last) + 1 - int(first)), 206
            else:
                raw = file.read()
        fault = server.script.pop(0) if server.script and name.endswith(".tar") else ""
        if fault == "outage":
            server.outage()
            self.close_connection = True
            return
        if fault in ("403", "500"):
            self.send_error(int(fault))
            return
        if name in server.flips:
            key = (name, asked)
            server.asked[key] += 1
            raw = bytearray(raw)
            if server.flips[name](server.asked[key]):
                raw[:: max(1, len(raw) // 50)] = bytes(b ^ 1 for b in raw[:: max(1, len(raw) // 50)])
        server.sent[name] += len(raw)
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw[: len(raw) // 2] if fault == "die" else raw)
        if fault == "die":
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


class Server:
    """An HTTP server on a free port of loopback that can be stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, 0
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.script: list[str] = []
        self.busy: list[str] = []
        self.flips: dict[str, Callable[[int], bool]] = {}
        self.asked: Counter[tuple[str, str | None]] = Counter()
        self.outages: list[float] = []
        self.start()

    def start(self) -> None:
        handler = partial(Handler, directory=str(self._folder))
        self._server: Any = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.requests, self._server.sent, self._server.script = self.requests, self.sent, self.script
        self._server.busy, self._server.flips, self._server.asked = self.busy, self.flips, self.asked
        self._server.outage = threading.Thread(target=self._go_away_for_a_while).start
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _go_away_for_a_while(self) -> None:
        self.stop()
        self.outages.append(time.time())
        time.sleep(1)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/corpus"


def open_stream(path: str, **settings: Any) -> Stream:
    """A stream of one corpus, in small eras."""
    cfg = DataConfig([Source(path)], seq_len=32, **({"shuffle_blocks": 2} | settings))
    return Stream.open(cfg, seed=0, global_batch=4)


def epoch(stream: Stream) -> np.ndarray:
    """What follows each token, of all sequences of an epoch, int64 [sequences, seq_len]."""
    return stream.read(range(sum(stream.sequences_per_epoch.values()))).following


def everything(folder: Path, which: Callable[[int], bool]) -> dict[str, Callable[[int], bool]]:
    """Flips for every file of the corpus, in the arrivals that `which` chooses."""
    return {path.name: which for path in folder.iterdir()}
