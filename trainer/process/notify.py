"""Tells somebody outside of faults, restarts and the end of a run: `supervise.notify`, a URL or a command.

One JSON object a message, by HTTP POST or on the command's standard input:

    kind     fault (an event `fault` or `hang` of the run), restart, end
    time     UTC, ISO 8601
    run      the run's name; folder: its folder, absolute
    host     the machine that sends the message; a fault has the machine on which it happened
    step     the run's step; reason: one line
    rank, code, restart, from_step …  what the event has besides

No environment, no config and no command line are in it, and of URLs in `reason` neither user nor query.

Sent from a thread of its own: a receiver that hangs or refuses neither delays nor fails the run.
"""

import base64
import contextlib
import http.client
import itertools
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from common.standard_error import write_line
from trainer.folder.run_folder import EVENTS
from trainer.record.reading import objects
from trainer.record.sinks import encode

SEND_SECONDS = 10.0  # for one message
FINISH_SECONDS = 10.0  # for all that wait when the run ends
POLL_SECONDS = 1.0  # between two looks at the run's events
MOST_WAITING = 100
TOLD = ("fault", "hang")
_SECRET = re.compile(r"(?<=://)[^/\s@]+@|(?<=[\w/])\?[^\s'\"]+")


class Notifier:
    """Sends messages to `target` from `begin` on, and of faults that are written into the run's events.

    target: `supervise.notify`; "": nothing is ever sent.
    name: of the run.
    folder: the run folder, which need not exist yet.
    """

    def __init__(self, target: str, name: str, folder: Path) -> None:
        self._target = target
        self._is_url = "://" in target.partition(" ")[0]
        self._about = {"run": name, "folder": str(folder.absolute()), "host": socket.gethostname()}
        self._events = folder / EVENTS
        self._read_bytes = 0
        # The earliest first, whichever way it came; of one millisecond a fault before what follows from it.
        self._waiting: queue.PriorityQueue[tuple[str, bool, int, dict[str, Any]]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._ending = threading.Event()
        self._complained = False
        self._dropped = False
        self._command: subprocess.Popen[bytes] | None = None  # that is told a message now
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)

    def begin(self) -> "Notifier":
        """Follow the run's events from their present end on; return this object."""
        if self._target:
            with contextlib.suppress(OSError):
                self._read_bytes = self._events.stat().st_size
            self._thread.start()
        return self

    def tell(self, kind: str, step: int, reason: str, **fields: Any) -> None:
        """Send a message; return at once."""
        if self._target:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._put({"kind": kind, "time": now, "step": step, "reason": reason, **fields})

    def finish(self, patience_seconds: float = FINISH_SECONDS) -> None:
        """Send what waits and end; give up after `patience_seconds`."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(patience_seconds)
            if self._thread.is_alive():
                if command := self._command:
                    _kill(command)
                self._complain("did not answer in time: what it was not told is in events.jsonl")

    def _put(self, message: Mapping[str, Any]) -> None:
        told = {**self._about, **message, "reason": _SECRET.sub("", str(message["reason"]))}
        if self._waiting.qsize() < MOST_WAITING:
            follows = told["kind"] != "fault"
            self._waiting.put((str(told.get("time", "")), follows, next(self._numbers), told))
        elif not self._dropped:
            self._dropped = True
            why = f"more than {MOST_WAITING} messages wait: later ones are dropped"
            write_line(f"supervise.notify: {why}; all that happens is in events.jsonl")

    def _run(self) -> None:
        while True:
            last = self._ending.is_set()  # before the look: what was written before the end is seen
            self._look()
            deadline = time.monotonic() + POLL_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                try:
                    self._waiting.put(self._waiting.get(timeout=0.01 if last else min(left, 0.1)))
                    self._look()  # the fault that a restart, or the end, comes from is told before it
                    *_, message = self._waiting.get()
                except queue.Empty:
                    if last:
                        return
                    if self._ending.is_set():
                        break
                    continue
                if trouble := self._send(encode(message).encode()):
                    self._complain(trouble)
                deadline += SEND_SECONDS if last else 0.0

    def _look(self) -> None:
        """Queue the faults that were written since the last look."""
        try:
            for position, event in objects(self._events, self._read_bytes):
                self._read_bytes = position
                if event and event.get("kind") in TOLD and isinstance(event.get("reason"), str):
                    self._put({**event, "kind": "fault"})
        except OSError:
            return

    def _send(self, document: bytes) -> str:
        """Return what went wrong; "" where nothing did."""
        if self._is_url:
            return _post(self._target, document)
        return self._call(shlex.split(self._target), document)

    def _call(self, command: list[str], document: bytes) -> str:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            return error.strerror or str(error)
        self._command = process
        try:
            process.communicate(document, timeout=SEND_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()
            return f"had not ended after {SEND_SECONDS:g} s: killed"
        except OSError:  # it closed its standard input
            process.wait()
        finally:
            self._command = None
        return f"ended with exit code {process.returncode}" if process.returncode else ""

    def _complain(self, trouble: str) -> None:
        """Say it once. The URL may hold a secret: its host alone is named."""
        if not self._complained:
            self._complained = True
            who = _host(self._target) if self._is_url else shlex.split(self._target)[0]
            write_line(f"supervise.notify: {who}: {trouble}; the run goes on")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "the URL"
    except ValueError:
        return "the URL"


def _post(url: str, document: bytes) -> str:
    headers = {"Content-Type": "application/json", "User-Agent": "germinal"}
    try:
        parts = urlsplit(url)
        login, at, host = parts.netloc.rpartition("@")
        if at:  # urllib takes them for a part of the host's name
            url = parts._replace(netloc=host).geturl()
            headers["Authorization"] = f"Basic {base64.b64encode(unquote(login).encode()).decode()}"
        request = urllib.request.Request(url, document, headers, method="POST")
        with urllib.request.urlopen(request, timeout=SEND_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return str(reason) or type(error).__name__
    except http.client.HTTPException as error:  # an answer that is no HTTP
        return f"no HTTP ({type(error).__name__})"


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a command and what it has started, which are a session of their own."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
