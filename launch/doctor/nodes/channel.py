"""One process a node, and lines of JSON to and from it, by its standard input and output.

So the doctor needs no network of its own: where srun or ssh starts a process, its output comes back.
"""

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

READ_BYTES = 1 << 16
END_SECONDS = 5.0
Message = dict[str, Any]


@dataclass
class _Node:
    """The process that leads to one node.

    process: srun or ssh.
    errors: what it writes on standard error.
    rest: the beginning of a line whose end has not come yet.
    open: its standard output is not closed.
    """

    process: "subprocess.Popen[bytes]"
    errors: IO[bytes]
    rest: bytes = b""
    open: bool = field(default=True)


class Channel:
    """The doctor's processes on all nodes. To be used as a context; it ends them."""

    def __init__(self, commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> None:
        """Start the processes.

        commands: node → command line and environment.
        """
        self._nodes: dict[str, _Node] = {}
        self._selector = selectors.DefaultSelector()
        for host, (argv, environ) in commands.items():
            errors = tempfile.TemporaryFile()  # noqa: SIM115
            try:
                process = subprocess.Popen(
                    argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
                )
            except FileNotFoundError:
                raise RuntimeError(f"{argv[0]} is not installed here, or not on the PATH") from None
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            self._nodes[host] = _Node(process, errors)
            self._selector.register(process.stdout, selectors.EVENT_READ, host)

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    @property
    def alive(self) -> list[str]:
        """The nodes whose process has not ended."""
        return [host for host, node in self._nodes.items() if node.open]

    def tell(self, host: str, message: Message) -> None:
        """Send a message to the process of a node; nothing where that has ended."""
        stdin = self._nodes[host].process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()

    def messages(self, until: float) -> Iterator[tuple[str, Message]]:
        """Yield (node, message) as messages come, until the time `until` (time.monotonic) or while a process
        is left to send one. A line that is no message (of a login script) is dropped.
        """
        while self.alive and (left := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                yield from self._read(key.data)

    def _read(self, host: str) -> Iterator[tuple[str, Message]]:
        node = self._nodes[host]
        assert node.process.stdout is not None
        data = os.read(node.process.stdout.fileno(), READ_BYTES)
        if not data:
            node.open = False
            self._selector.unregister(node.process.stdout)
        *lines, node.rest = (node.rest + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                if isinstance(message := json.loads(line), dict) and "kind" in message:
                    yield host, message

    def why_ended(self, host: str) -> str:
        """The last line of what a node's process wrote on standard error; "" where there is none."""
        errors = self._nodes[host].errors
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def close(self) -> None:
        """End all processes: by the end of their standard input, then by SIGTERM and SIGKILL."""
        processes = [node.process for node in self._nodes.values()]
        for process in processes:
            with contextlib.suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.close()
        for end in (lambda process: None, subprocess.Popen.terminate, subprocess.Popen.kill):
            for process in processes:
                if process.poll() is None:
                    end(process)
            deadline = time.monotonic() + END_SECONDS
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        for node in self._nodes.values():
            node.errors.close()
            if node.process.stdout is not None:
                node.process.stdout.close()
        self._selector.close()
