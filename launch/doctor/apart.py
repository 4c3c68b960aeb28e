"""Runs a check in a process of its own: what hangs (a dead NFS, a name server) does not hang the doctor."""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from launch.doctor.check import Check, Circumstances
from launch.doctor.finding import Finding, one_line, warning

READ_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1


def findings_of(check: Check, at: Circumstances) -> Iterator[Finding]:
    """Yield what `check` finds, each as soon as it is found.

    After `check.seconds` the process is killed, and the last finding says so. The process is not waited for:
    the kernel keeps one that waits for a dead file server, whatever signal it gets.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.close(reader)
        _examine(check, at, writer, parent)
    os.close(writer)
    last = ""
    try:
        for line in _lines(reader, time.monotonic() + check.seconds):
            finding = Finding.read(json.loads(line))
            last = finding.check
            yield finding
    except TimeoutError:
        after = f" after {last}" if last else ""
        found = f"no answer within {check.seconds:g} s{after}"
        yield Finding(f"{check.subject}.time", check.if_stuck, found, check.when_stuck)
    finally:
        os.close(reader)
        # SIGTERM first, so that a check that is left early removes its files.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, number)
            _reap(child)


def _lines(descriptor: int, deadline: float) -> Iterator[bytes]:
    """Yield whole lines until the writing end is closed. TimeoutError when the deadline comes first."""
    rest = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise TimeoutError
        if not (data := os.read(descriptor, READ_BYTES)):
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _reap(child: int) -> None:
    for _ in range(50):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
                continue
        return


def _examine(check: Check, at: Circumstances, writer: int, parent: int) -> NoReturn:
    """In the child: write each finding as a line of JSON, and end."""
    os.setsid()  # programs that the check starts are killed with it; Ctrl-C reaches the parent alone
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    end_with_parent(parent)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        for finding in check.run(at):
            _put(writer, finding)
    except Exception as problem:
        _put(writer, _failed(check, problem))
    finally:
        os._exit(0)


def end_with_parent(parent: int) -> None:
    """In a child: have the kernel kill it when the process `parent`, which made it, ends. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # that ended before the line above
            os._exit(1)


def _failed(check: Check, problem: BaseException) -> Finding:
    where = problem.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    line = f" ({os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno})" if where else ""
    found = f"the check itself failed: {type(problem).__name__}: {one_line(problem)}{line}"
    return warning(
        f"{check.subject}.failed", found, "this subject was not examined to its end: please report it"
    )


def _put(descriptor: int, finding: Finding) -> None:
    line = json.dumps(finding.document(), default=str).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]
