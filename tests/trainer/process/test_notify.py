"""Messages to somebody outside, over real HTTP and to real commands, and whoever does not take them."""

import base64
import http.server
import json
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainer.config import checks, reading
from trainer.process import notify
from trainer.process.notify import Notifier
from trainer.record.events import EventLog


@contextmanager
def receiver(status: int = 200, delay_seconds: float = 0.0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server on this machine: its URL, and the documents that were posted to it."""
    got: list[dict[str, Any]] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append({**document, "authorization": self.headers["Authorization"]})
            over.wait(delay_seconds)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook/SECRET?token=SECRET", got
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def test_faults_of_the_run_restarts_and_the_end_are_told_in_order(tmp_path: Path) -> None:
    events = EventLog(tmp_path / "events.jsonl", shown=False)
    events.event("fault", 3, "before the start: nobody is told")
    with receiver() as (url, got):
        notifier = Notifier(url, "mine", tmp_path).begin()
        events.event("save", 4, "as planned")
        events.event("fault", 5, "at https://me:word@host/x?key=1 and s3://a:b@c", rank=2, host="n7")
        notifier.tell("restart", 5, "rank 2 on n7 was ended by SIGKILL", rank=2, code=-9)
        deadline = time.monotonic() + 10
        while len(got) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        events.event("hang", 9, "rank 1 on n3 hangs", rank=1, host="n3")
        notifier.tell("end", 9, "done", code=0)
        notifier.finish()
    assert [message["kind"] for message in got] == ["fault", "restart", "fault", "end"]
    fault = next(message for message in got if message["step"] == 5 and message["kind"] == "fault")
    assert fault["reason"] == "at https://host/x and s3://c"
    assert (fault["rank"], fault["host"], fault["run"]) == (2, "n7", "mine")
    assert fault["folder"] == str(tmp_path)
    assert got[-1]["host"] == socket.gethostname()


def test_a_user_and_a_password_in_the_url_are_sent_as_such(tmp_path: Path) -> None:
    with receiver() as (url, got):
        notifier = Notifier(url.replace("://", "://me:a%20word@"), "mine", tmp_path).begin()
        notifier.tell("end", 9, "done", code=0)
        notifier.finish()
        assert got[0]["authorization"] == "Basic " + base64.b64encode(b"me:a word").decode()


@pytest.mark.parametrize("status", [404, 500])
def test_a_receiver_that_refuses_is_named_once_without_its_secret(
    status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with receiver(status) as (url, got):
        notifier = Notifier(url, "mine", tmp_path).begin()
        for step in range(3):
            notifier.tell("fault", step, "no")
        notifier.finish()
    assert len(got) == 3
    assert capfd.readouterr().err == f"supervise.notify: 127.0.0.1: HTTP {status}; the run goes on\n"


def test_a_receiver_that_hangs_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "SEND_SECONDS", 60.0)
    with receiver(delay_seconds=60.0) as (url, _):
        notifier = Notifier(url, "mine", tmp_path).begin()
        began = time.monotonic()
        for step in range(1000):
            notifier.tell("fault", step, "no")
        assert time.monotonic() - began < 1
        notifier.finish(patience_seconds=0.5)
        assert time.monotonic() - began < 5
    said = capfd.readouterr().err
    assert "did not answer in time" in said and said.count("more than 100 messages wait") == 1


def test_a_command_that_hangs_ends_with_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With what it has started: nothing of the run is left."""
    child = tmp_path / "child"
    command = shlex.join(["sh", "-c", f"sleep 60 & echo $! > {child}; wait"])
    notifier = Notifier(command, "mine", tmp_path).begin()
    notifier.tell("end", 7, "done", code=0)
    deadline = time.monotonic() + 10
    while not (child.exists() and child.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.02)
    notifier.finish(patience_seconds=0.3)
    status = Path(f"/proc/{child.read_text().strip()}/status")
    while status.exists() and "State:\tZ" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not status.exists() or "State:\tZ" in status.read_text()
    assert "did not answer in time" in capfd.readouterr().err


def nobody_listens() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (nobody_listens(), "refused"),
        ("/nowhere/page-me --loud", "/nowhere/page-me: No such file or directory"),
        (f"{sys.executable} -c 'exit(3)'", "ended with exit code 3"),
        ("sleep 60", "sleep: had not ended after 0.5 s: killed"),
    ],
    ids=["refused", "no such program", "fails", "hangs"],
)
def test_nobody_there_is_one_line(
    target: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(notify, "SEND_SECONDS", 0.5)
    notifier = Notifier(target, "mine", tmp_path).begin()
    notifier.tell("end", 1, "failed", code=1)
    notifier.finish()
    said = capfd.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_command_gets_the_document_and_no_shell_reads_it(tmp_path: Path) -> None:
    out = tmp_path / "it's here"
    command = f"{sys.executable} -c 'import sys; open(sys.argv[1], \"a\").write(sys.stdin.read())' "
    notifier = Notifier(command + shlex.quote(str(out)) + " ; touch $(pwd)", "mine", tmp_path).begin()
    notifier.tell("end", 7, "done; `reboot`", code=0)
    notifier.finish()
    assert json.loads(out.read_text())["reason"] == "done; `reboot`"


def test_no_target_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    notifier = Notifier("", "mine", tmp_path).begin()
    notifier.tell("end", 1, "done")
    notifier.finish()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("target", "fits"),
    [
        ("https://hooks.example.com/a/b", True),
        ("mail -s 'a run' me@example.com", True),
        ("notify-send http://x", True),
        ("ftp://host/x", False),
        ("http://", False),
        ("http://[::1", False),
        ("http://[::1]:8080/x", True),
        ("http://host:port/x", False),
        ("http://:80/x", False),
        ("mail -s 'a run", False),
        ("  ", False),
    ],
)
def test_a_target_is_checked_before_the_run(target: str, fits: bool, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text("model: {heads: 4, hidden: 64}\ndata: {sources: [{path: corpus}]}")
    cfg = reading.load(file)
    cfg.supervise.notify = target
    if fits:
        checks.check(cfg)
    else:
        with pytest.raises(ValueError, match=r"supervise\.notify="):
            checks.check(cfg)
