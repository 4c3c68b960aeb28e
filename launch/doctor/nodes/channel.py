"""One process a node, and lines of JSON to and from it, by its standard input and output.

So the doctor needs no network of its own: where srun or ssh starts a process, its output comes back.
"""

import contextlib
import json
import os
import resource
import selectors
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

READ_BYTES = 1 << 16
END_SECONDS = 5.0
TELL_SECONDS = 10.0  # for a node to take a message
FILES_PER_NODE = 3  # standard input, output and error
FILES_KEPT = 64  # for all else
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

        Raises:
            RuntimeError: a process cannot be started, or so many cannot be open; none is left running.
        """
        _allow_files(len(commands))
        self._nodes: dict[str, _Node] = {}
        self._selector = selectors.DefaultSelector()
        try:
            for host, (argv, environ) in commands.items():
                self._start(host, argv, environ)
        except OSError as problem:
            self.close()
            at = f"after {len(self._nodes)} of {len(commands)} nodes"
            raise RuntimeError(f"{argv[0]} cannot be started {at}: {problem.strerror}") from None
        except BaseException:
            self.close()
            raise

    def _start(self, host: str, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            process = subprocess.Popen(
                argv,
                bufsize=0,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except FileNotFoundError:
            errors.close()
            raise RuntimeError(f"{argv[0]} is not installed here, or not on the PATH") from None
        except BaseException:
            errors.close()
            raise
        self._nodes[host] = _Node(process, errors)
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
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
        """Send a message to the process of a node; nothing where that has ended. One that does not take it
        in time is ended: `why_ended` says so.
        """
        node = self._nodes[host]
        assert node.process.stdin is not None
        data = json.dumps(message).encode() + b"\n"
        until = time.monotonic() + TELL_SECONDS
        with contextlib.suppress(BrokenPipeError), selectors.DefaultSelector() as selector:
            selector.register(node.process.stdin, selectors.EVENT_WRITE)
            while data:
                if not selector.select(max(0.0, until - time.monotonic())):
                    node.process.kill()
                    node.errors.write(f"\nit did not take a message within {TELL_SECONDS:g} s\n".encode())
                    node.errors.flush()
                    return
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(node.process.stdin.fileno(), data) :]

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


def _allow_files(nodes: int) -> None:
    """Raise the limit of open files to what the nodes need. RuntimeError where that is too much."""
    needed = nodes * FILES_PER_NODE + FILES_KEPT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        most = max(0, hard - FILES_KEPT) // FILES_PER_NODE
        raise RuntimeError(
            f"{nodes} nodes need {needed} open files, and the hard limit (ulimit -Hn) is {hard}: have it "
            f"raised, or examine at most {most} nodes at a time"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
