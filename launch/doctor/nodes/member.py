"""The doctor's process on one node: `python -m launch.doctor.nodes.member HOST`, started by srun or ssh.

It reads messages as lines of JSON, {"do": STEP, …}, makes the step, and writes {"kind": "finding", …} for
each finding and {"kind": "done", "step": STEP, …} at its end. It ends when its standard input is closed.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from launch.doctor import one_machine
from launch.doctor.apart import findings_of
from launch.doctor.check import Check, Circumstances
from launch.doctor.checks import interfaces
from launch.doctor.finding import Finding, Level
from launch.doctor.nodes import links, listener, reduce, shared

STEP_SECONDS = 60.0
STUCK = "the network or the file system between the nodes hangs: see the findings above"
Message = dict[str, Any]


class Member:
    """One node's side of the examination."""

    def __init__(self, host: str, put: Callable[[Message], None]) -> None:
        """host: the node's name in the allocation. put: sends a message to the doctor."""
        self._host = host
        self._put = put
        self._at = Circumstances((), dict(os.environ), host=host)
        self._clock_offset_seconds = 0.0
        self._lock_holder = 0

    def take(self, message: Message) -> None:
        """Make the step of one message."""
        step = message["do"]
        more: Message = {}
        if step == "examine":
            environ = {**os.environ, **message["environ"]}
            folders = tuple(Path(folder) for folder in message["folders"])
            self._at = Circumstances(folders, environ, host=self._host)
            self._find(one_machine.examine(self._at))
        elif step == "listen":
            port, _ = listener.start()
            found = [interface.address for interface in _interfaces()]
            more = {"addresses": found or _own_addresses(), "port": port, "free_port": listener.free_port()}
        elif step == "hold_lock":
            self._lock_holder = shared.hold_lock(self._place(message))
            more = {"held": bool(self._lock_holder)}
        elif step == "release_lock":
            if self._lock_holder:
                os.kill(self._lock_holder, signal.SIGKILL)
        elif step in shared.STEPS:
            self._apart(partial(shared.STEPS[step], self._place(message)))
        else:
            peers = [listener.Peer(host, tuple(at), port) for host, at, port in message["peers"]]
            work: dict[str, Callable[[], Iterator[Finding]]] = {
                "connect": partial(links.connect, peers),
                "send": partial(links.send, peers),
                "reduce": partial(reduce.over_nodes, peers, message, self._at),
            }
            self._apart(work[step])
        self._put({"kind": "done", "step": step, **more})

    def _place(self, message: Message) -> shared.Place:
        return shared.Place(
            folder=Path(message["folder"]),
            name=message["name"],
            first=message["first"],
            hosts=tuple(message["hosts"]),
            host=self._host,
            clock_offset_seconds=self._clock_offset_seconds,
        )

    def _apart(self, work: Callable[[], Iterator[Finding]]) -> None:
        check = Check("nodes", lambda at: work(), STEP_SECONDS, Level.WARNING, STUCK)
        self._find(findings_of(check, self._at))

    def _find(self, findings: Iterator[Finding]) -> None:
        for finding in findings:
            self._clock_offset_seconds = finding.measured.get(
                "clock_offset_seconds", self._clock_offset_seconds
            )
            self._put({"kind": "finding", **finding.document()})


def _interfaces() -> list[interfaces.Interface]:
    return list(interfaces.usable()) if interfaces.NET.is_dir() else []


def _own_addresses() -> list[str]:
    """Where the interfaces cannot be listed, or only loopback is up: what the own name leads to."""
    try:
        return list(
            dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None))
        )
    except OSError:
        return []


def main(host: str) -> int:
    """Take messages until standard input is closed."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a program prints by mistake is no message

    def put(message: Message) -> None:
        out.write(json.dumps(message, default=str) + "\n")
        out.flush()

    member = Member(host, put)
    put({"kind": "hello", "host": host})
    for line in sys.stdin:
        member.take(json.loads(line))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
