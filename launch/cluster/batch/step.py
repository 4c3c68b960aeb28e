"""One srun step: its command, the signals that it is sent, and how it ended."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common.exit_codes import STOPPED
from launch.cluster.batch.step_output import StepOutput
from launch.local.signal_inbox import SignalInbox

# SLURM's warning before the time limit; SIGTERM of scancel, a requeue, `germinal cancel` or the limit itself.
ASKED = (signal.SIGUSR1, signal.SIGTERM)
# What ranks have to save and leave in; SLURM may give them less (KillWait, the time limit).
STOP_SECONDS = 600.0
# After the first rank has failed: what the others, whom srun has told to end, have before srun is told to end
# the step, and then before srun itself is killed. It waits for a lost node for SlurmdTimeout, often minutes.
FAIL_SECONDS = 45.0
KILL_SECONDS = 40.0
NEVER = float("inf")
# srun passes the whole environment on, also in a job that was sent with `--export=NONE`: SLURM_EXPORT_ENV.
EXPORT = "--export=ALL"


@dataclass(frozen=True)
class StepEnd:
    """How a step ended.

    code: the exit code that counts; negative: the signal that ended the first rank to fail.
    rank, host: the first rank to fail and its node; None and "" where it is not known.
    lost: nodes that srun lost.
    asked_to_stop: a request to stop came while the step ran.
    signals: rank → the signal that ended it, of ranks that srun told of one by one.
    """

    code: int
    rank: int | None = None
    host: str = ""
    lost: tuple[str, ...] = ()
    asked_to_stop: bool = False
    signals: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Where a step runs.

    nodes: in SLURM's order.
    nproc: ranks a node.
    cpus: CPUs a rank; 0: as SLURM gives them.
    """

    nodes: tuple[str, ...]
    nproc: int
    cpus: int = 0

    @property
    def world(self) -> int:
        return len(self.nodes) * self.nproc

    def host_of(self, rank: int) -> str:
        """The node of a rank: srun fills one node after another (--distribution=block)."""
        return self.nodes[rank // self.nproc] if rank < self.world else ""


def srun(where: Placement, more: Sequence[str], ranks: Sequence[str]) -> list[str]:
    """Return the command of a step that runs `ranks` as every rank. `more`: options of srun besides."""
    words = [
        "srun",
        "--label",
        "--kill-on-bad-exit=1",
        f"--nodes={len(where.nodes)}",
        f"--nodelist={','.join(where.nodes)}",
        f"--ntasks={where.world}",
        f"--ntasks-per-node={where.nproc}",
        "--distribution=block:block",
        # A step whose node was lost may not have ended for SLURM yet, and holds its CPUs and GPUs.
        "--overlap",
        "--input=none",
        EXPORT,
    ]
    words += [f"--cpus-per-task={where.cpus}"] if where.cpus else []
    return [*words, *more, "--", *ranks]


def run_step(
    command: Sequence[str],
    environ: Mapping[str, str],
    where: Placement,
    output: StepOutput,
    signals: SignalInbox,
) -> StepEnd:
    """Run a step to its end. A request to stop is passed on to the ranks, which save and leave."""
    process = subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    assert process.stdout is not None
    step = _Step(process, output, signals)
    with process.stdout, selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdout.fileno(), False)
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(signals.wakeup, selectors.EVENT_READ)
        while step.goes_on():
            for key, _ in selector.select(timeout=1.0):
                if key.fileobj is signals.wakeup:
                    signals.clear_wakeup()
                elif chunk := os.read(process.stdout.fileno(), 1 << 16):
                    output.read(chunk)
                else:
                    selector.unregister(process.stdout)
        _read_rest(process.stdout.fileno(), output)
    return _end(process.wait(), output, where, asked_to_stop=step.asked)


def _read_rest(descriptor: int, output: StepOutput) -> None:
    """Read what is left in the pipe of a step that has ended: srun tells last how the ranks ended."""
    with contextlib.suppress(BlockingIOError):  # a process that srun left behind may hold the pipe open
        while chunk := os.read(descriptor, 1 << 16):
            output.read(chunk)
    output.read(b"")


class _Step:
    """A step that runs: what is sent to srun, and when."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: StepOutput, signals: SignalInbox) -> None:
        self.asked = False
        self._process = process
        self._output = output
        self._signals = signals
        self._end_at = NEVER
        self._kill_at = NEVER

    def goes_on(self) -> bool:
        """Whether srun runs; send it what is due."""
        now = time.monotonic()
        if any(number in ASKED for number in self._signals.take()) and not self.asked:
            self.asked = True
            self._end_at = min(self._end_at, now + STOP_SECONDS)
            self._process.send_signal(signal.SIGUSR1)
        if self._output.first or self._output.lost:
            self._end_at = min(self._end_at, now + FAIL_SECONDS)
        if now >= self._end_at:
            self._process.send_signal(signal.SIGTERM)
            self._end_at, self._kill_at = NEVER, min(self._kill_at, now + KILL_SECONDS)
        if now >= self._kill_at:
            self._process.kill()
        return self._process.poll() is None


def _end(code: int, output: StepOutput, where: Placement, *, asked_to_stop: bool) -> StepEnd:
    first, lost = output.first, tuple(dict.fromkeys(output.lost))
    rank, host = (first.rank, first.host) if first else (None, "")
    if lost:  # the other ranks ended for want of those there, and srun's own code may be 0
        code, host = -signal.SIGKILL, lost[0]
        rank = where.nodes.index(host) * where.nproc if host in where.nodes else None
    elif first:
        code = first.code
    elif code > 128:  # srun's own way to tell a signal
        code = 128 - code
    if asked_to_stop and -code in ASKED:  # a rank that did not handle signals yet: nothing was under way
        code = STOPPED
    return StepEnd(code, rank, host, lost, asked_to_stop, output.signals)
