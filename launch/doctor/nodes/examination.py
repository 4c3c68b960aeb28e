"""The doctor's side: has every node examined at the same time, then together; compares them.

Steps follow one another: a step begins when every node has ended the one before, or its time is over. A node
that has not answered by then is named, and takes part no more.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.doctor.finding import Finding, Level, error
from launch.doctor.nodes import verdict
from launch.doctor.nodes.channel import Channel, Message

HELLO_SECONDS = 60.0
EXAMINE_SECONDS = 240.0
STEP_SECONDS = 70.0
NEAR = 8
WATCH_BEGINS_SECONDS = 0.5


def peers_of(host: str, order: Sequence[str]) -> list[str]:
    """The nodes to which a node connects: the first one, the next `NEAR`, and those 16, 32, 64 … further on
    in a ring. Among few nodes these are all pairs. Among many they are few a node, and near and far ones, of
    one switch and of several, are among them.
    """
    number, count = order.index(host), len(order)
    steps = list(range(1, min(NEAR, count - 1) + 1))
    far = 2 * NEAR
    while far < count:
        steps.append(far)
        far *= 2
    found = dict.fromkeys([order[0], *(order[(number + step) % count] for step in steps)])
    return [other for other in found if other != host]


class Examination:
    """The examination of several nodes.

    findings: all so far, each with its node.
    """

    def __init__(
        self,
        channel: Channel,
        hosts: Sequence[str],
        *,
        show: Callable[[Sequence[Finding]], None],
        say: Callable[[str], None],
    ) -> None:
        """Prepare the examination of `hosts`, to which `channel` leads.

        show: called with the findings of each step when that has ended.
        say: told of the progress, in one line.
        """
        self._channel = channel
        self._all = list(hosts)
        self._hosts = list(hosts)  # those that take part
        self._show = show
        self._say = say
        self._answers: dict[str, Message] = {}
        self.findings: list[Finding] = []

    def run(self, folders: Sequence[Path], environ: Mapping[str, str]) -> None:
        """Make all steps.

        folders: as `Circumstances` has them.
        environ: what the job's variables are where the doctor was started.
        """
        self._await(self._hosts, "hello", HELLO_SECONDS)
        self._say(f"{len(self._hosts)} of {len(self._all)} nodes answer: {', '.join(self._hosts)}")
        message = {"do": "examine", "folders": [str(folder) for folder in folders], "environ": dict(environ)}
        self._make(dict.fromkeys(self._hosts, message), EXAMINE_SECONDS)
        if len(self._hosts) > 1:
            self._links()
            for folder in folders:
                self._shared(folder)
        self._add(list(verdict.compare(self.findings, self._hosts)))

    @property
    def to_leave_out(self) -> list[str]:
        return verdict.to_leave_out(self.findings, self._all)

    def _links(self) -> None:
        """Listen everywhere; then connect, send, and reduce over all nodes."""
        self._say("between the nodes: names, connections, clocks, an all-reduce")
        self._make({host: {"do": "listen"} for host in self._hosts})
        told = dict(self._answers)
        peers = {host: [host, told[host]["addresses"], told[host]["port"]] for host in self._hosts}
        order = self._hosts
        self._make(
            {
                host: {"do": "connect", "peers": [peers[other] for other in peers_of(host, order)]}
                for host in order
            }
        )
        # Each node sends to the next, then to the one after that: in each round every node receives once.
        steps = range(1, min(3, len(order)))
        sends = {}
        for number, host in enumerate(order):
            to = [order[(number + step) % len(order)] for step in steps]
            sends[host] = {"do": "send", "peers": [peers[other] for other in to]}
        self._make({host: sends[host] for host in self._hosts})
        if not self._hosts:
            return
        first = self._hosts[0]
        common = {"peers": [peers[first]], "port": told[first]["free_port"], "nodes": len(self._hosts)}
        self._make(
            {host: {"do": "reduce", "node": number, **common} for number, host in enumerate(self._hosts)}
        )

    def _shared(self, folder: Path) -> None:
        """What nodes see of each other's files in `folder`."""
        if len(self._hosts) < 2:
            return
        self._say(f"between the nodes: {folder}")
        hosts, first = list(self._hosts), self._hosts[0]
        about = {
            "folder": str(folder),
            "name": f"{os.getpid()}-{time.time_ns()}",
            "first": first,
            "hosts": hosts,
        }

        def step(name: str, only: Sequence[str]) -> None:
            self._make({host: {"do": name, **about} for host in only if host in self._hosts})

        step("make", [first])
        if first not in self._hosts or not self._found("folder.made", first):
            return
        step("see", hosts)
        seeing = [host for host in hosts if host == first or self._found("folder.shared", host)]
        if len(seeing) > 1:
            about["hosts"] = seeing
            others = seeing[1:]
            watch = {host: {"do": "watch", **about} for host in others}
            for host in others:
                self._channel.tell(host, watch[host])
            time.sleep(WATCH_BEGINS_SECONDS)
            self._channel.tell(first, {"do": "write", **about})
            self._await([*others, first], "done", STEP_SECONDS)
            step("hold_lock", [first])
            if self._answers.get(first, {}).get("held"):
                step("try_lock", others)
            step("release_lock", [first])
            step("append", seeing)
            step("count", [first])
        step("clean", [first])

    def _found(self, check: str, host: str) -> bool:
        """Whether the newest finding of a check on a node is that all is well."""
        levels = [f.level for f in self.findings if f.check == check and f.host == host]
        return bool(levels) and levels[-1] == Level.OK

    def _make(self, messages: Mapping[str, Message], seconds: float = STEP_SECONDS) -> None:
        """Tell each node its message, and wait until all have ended the step."""
        for host, message in messages.items():
            self._channel.tell(host, message)
        self._await(list(messages), "done", seconds)

    def _await(self, hosts: Sequence[str], kind: str, seconds: float) -> None:
        """Collect messages until each of `hosts` has sent one of `kind`; name and drop those that do not."""
        waiting, found = [host for host in hosts if host in self._hosts], list[Finding]()
        if not waiting:
            return
        self._answers = {}
        for host, message in self._channel.messages(time.monotonic() + seconds):
            if message["kind"] == "finding":
                document: dict[str, Any] = {key: value for key, value in message.items() if key != "kind"}
                found.append(Finding.read(document).at(host))
            elif message["kind"] == kind and host in waiting:
                self._answers[host] = message
                waiting.remove(host)
            gone = [host for host in waiting if host not in self._channel.alive]
            if len(gone) == len(waiting):
                break
        for host in waiting:
            self._hosts.remove(host)
            how = "has gone" if host not in self._channel.alive else f"did not answer within {seconds:g} s"
            why = self._channel.why_ended(host)
            text = f"this node {how}" + f": {why}" * bool(why)
            found.append(
                error(
                    "nodes.answers",
                    text,
                    f"see `scontrol show node {host}` or `ssh {host}`; leave it out",
                    host=host,
                )
            )
        self._add(found)

    def _add(self, found: Sequence[Finding]) -> None:
        self.findings += found
        self._show(found)
