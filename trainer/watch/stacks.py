"""Where the threads of this process are: their Python stacks, and a stack in a few words."""

import linecache
import re
import sys
import sysconfig
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = f"{Path(__file__).parents[2]}/"
_LIBRARIES = tuple(f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib", "stdlib"))
_OURS = ("trainer/", "parallel/", "data/", "launch/", "common/")

# Here a rank waits for other ranks: torch's collectives, and a save's wait for the others' parts.
_COLLECTIVES = (
    "torch/distributed/distributed_c10d.py",
    "torch/distributed/c10d_logger.py",
    "torch/distributed/_functional_collectives.py",
)
_POLL = ("trainer/checkpoint/saving/attempt.py", "_poll")
# Calls into torch that return when a device has done all that it was given, or a message has arrived.
_SYNCHRONISES = re.compile(r"\.(wait|item|tolist|cpu|numpy|synchronize)\(")
# Here a thread waits for another thread of its process.
_HANDOVERS = ("threading.py", "queue.py", "concurrent/futures/_base.py", "concurrent/futures/thread.py")
_DEBUGGERS = ("bdb.py", "pdb.py", "cmd.py", "_pydevd_bundle/", "debugpy/", "IPython/core/debugger.py")
# Not all of torch/_dynamo/ and torch/_inductor/, which also call what they have compiled.
_COMPILERS = (
    "torch/_dynamo/convert_frame.py",
    "torch/_inductor/compile_fx.py",
    "torch/_inductor/async_compile.py",
    "torch/_inductor/codecache.py",
    "triton/compiler/",
    "triton/runtime/autotuner.py",
    "torch/utils/cpp_extension.py",
)

MOST_FRAMES = 200  # of one stack: the innermost ones
SOURCE_SECONDS = 1.0  # in which a source file has to be read


@dataclass(frozen=True)
class Frame:
    """One call of a stack.

    file: from the project's root, or from the library's.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


@dataclass(frozen=True)
class Stack:
    """A thread's calls, the outermost first.

    thread: its identifier (`threading.get_ident`).
    source: the text of the innermost frame's line; "" where the file is not there.
    """

    name: str
    thread: int
    frames: tuple[Frame, ...]
    source: str = ""

    @property
    def is_in_debugger(self) -> bool:
        return self._has(_DEBUGGERS)

    @property
    def compiles(self) -> bool:
        return self._has(_COMPILERS)

    @property
    def waits_for_a_thread(self) -> bool:
        """Whether the thread waits for another of this process, or for work."""
        return bool(self.frames) and self.frames[-1].file in _HANDOVERS

    def waits_for_ranks(self, unfinished: Sequence[str]) -> bool:
        """Whether the thread waits for other ranks. `unfinished`: the collectives under way on this rank."""
        if not self.frames:
            return False
        innermost = self.frames[-1].file
        if innermost in _COLLECTIVES or any((f.file, f.function) == _POLL for f in self.frames[-3:]):
            return True
        return bool(unfinished) and (
            innermost.startswith("torch/") or _SYNCHRONISES.search(self.source) is not None
        )

    def in_words(self) -> str:
        """The innermost call, and the project's own call that led there."""
        if not self.frames:
            return "no Python code"
        innermost = self.frames[-1]
        own = next((frame for frame in reversed(self.frames) if frame.file.startswith(_OURS)), None)
        return str(innermost) if own in (None, innermost) else f"{own} → {innermost}"

    def text(self) -> str:
        """The stack as lines, the outermost call first."""
        lines = [f"thread {self.name}", *(f"  {frame}" for frame in self.frames)]
        return "\n".join([*lines, f"    {self.source}"] if self.source else lines)

    def _has(self, files: Sequence[str]) -> bool:
        return any(name in frame.file for frame in self.frames for name in files)


def stacks() -> list[Stack]:
    """Return the stacks of all threads of this process that run Python, but for the calling one; the main
    thread first.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    own = threading.get_ident()
    main = threading.main_thread().ident
    order = sorted((ident for ident in frames if ident != own), key=lambda ident: ident != main)
    return [_stack(names.get(ident, f"{ident}"), ident, frames[ident]) for ident in order]


def call(stack: Stack, others: Sequence[Stack]) -> str:
    """Describe in words where a thread is. Where it waits for another thread of ours: also where that is."""
    words = stack.in_words()
    if not stack.waits_for_a_thread:
        return words
    for other in others:
        busy = not other.waits_for_a_thread and any(f.file.startswith(_OURS) for f in other.frames)
        if other is not stack and busy and not is_service(other):
            return f"{words}, for the thread {other.name}, which is in {other.in_words()}"
    return words


def is_service(stack: Stack) -> bool:
    """Whether the thread serves the process, and is no part of the run's work."""
    services = ("trainer/process/", "trainer/watch/", "trainer/metrics/progress.py", "parallel/world/")
    own = [frame for frame in stack.frames if frame.file.startswith(_OURS)]
    # The main thread's outermost frames are in trainer/process/ too.
    return bool(own) and all(frame.file.startswith(services) for frame in own)


def _stack(name: str, ident: int, innermost: FrameType) -> Stack:
    frames: list[Frame] = []
    frame: FrameType | None = innermost
    while frame is not None and len(frames) < MOST_FRAMES:
        code = frame.f_code
        frames.append(Frame(_short(code.co_filename), frame.f_lineno or 0, code.co_name))
        frame = frame.f_back
    source = _SOURCES.line(innermost.f_code.co_filename, innermost.f_lineno or 0)
    return Stack(name, ident, tuple(reversed(frames)), source)


class _SourceLines:
    """Lines of source files. The code may lie on a disk that does not answer, which is then the very reason
    for a look at the stacks: a line that has not come in time is left out, and so are all others until the
    disk answers.
    """

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = {}
        self._reading: threading.Thread | None = None

    def line(self, file: str, number: int) -> str:
        """Return line `number` of `file`, counted from 1; "" where there is none, or not in time."""
        if file not in self._files and (self._reading is None or not self._reading.is_alive()):
            self._reading = threading.Thread(
                target=self._read, args=(file,), name="source lines", daemon=True
            )
            self._reading.start()
            self._reading.join(SOURCE_SECONDS)
        lines = self._files.get(file, [])
        return lines[number - 1].strip() if 0 < number <= len(lines) else ""

    def _read(self, file: str) -> None:
        self._files[file] = linecache.getlines(file)


_SOURCES = _SourceLines()


def _short(file: str) -> str:
    """`file` from the project's or a library's root on, where it lies in one."""
    # The environment may lie in the project's folder, and the packages in the standard library's.
    for root in (*_LIBRARIES, ROOT):
        if file.startswith(root):
            return file.removeprefix(root)
    return file
