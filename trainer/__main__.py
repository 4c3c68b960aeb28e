"""One rank of a run: `python -m trainer CONFIG [key=value…]`, under any launcher or none.

Exit codes: 0 done; 1 failed; 2 the config is wrong; 75 asked to stop, and the state is saved or nothing was
under way, or the run is held by another process: run me again; 130 interrupted by Ctrl-C, state saved if
anything was under way, unless Ctrl-C came twice.
"""

import contextlib
import os
import resource
import sys
import time
import traceback
from contextlib import ExitStack
from datetime import timedelta

from common.exit_codes import ASKED_TO_STOP, DONE, FAILED, IN_WORDS, STOPPED, WRONG, of_request
from common.standard_error import complain, forgive
from parallel.world.launcher import is_first, is_supervised
from trainer.checkpoint.folder import before_first_step, goes_on
from trainer.config import reading
from trainer.config.run_config import RunConfig
from trainer.folder.fence import Fence
from trainer.process.ending import run_to_the_end
from trainer.process.interrupts import LeaveAtOnce
from trainer.process.starting import Starting
from trainer.ranks import on_every_rank
from trainer.record.sinks import last_step
from trainer.watch.phases import START, Phases

ALONE_SECONDS = 3.0  # in which a launcher notices that rank 0 has ended; torchrun looks every 0.1 s
USAGE = "usage: germinal rank CONFIG [key=value…]"


def main(arguments: list[str], *, ends_process: bool = False) -> int:
    """Train the run that `arguments` (a config file, then key=value) describe; return the exit code.

    ends_process: nothing but `run_to_the_end` follows. Signals are answered as before then: given back, a
        repeated request to stop would end the process with another code than the one it has.

    DeepSpeed's launcher passes a local rank before them, which is dropped: LOCAL_RANK has the same number.
    """
    parent = os.getppid()  # now: a launcher may end in the seconds in which torch is imported
    arguments = _without_local_rank(arguments)
    if arguments in (["-h"], ["--help"]):
        print(f"{USAGE}: one rank of a run; `germinal train` starts them")
        return DONE
    if not arguments or arguments[0].startswith("-"):
        return complain(USAGE, WRONG)
    signals = LeaveAtOnce("the first step", announces=True).begin()
    try:
        return _run(arguments, signals, parent)
    finally:
        if not ends_process:
            signals.end()


def _without_local_rank(arguments: list[str]) -> list[str]:
    option, equals, _ = (arguments or [""])[0].partition("=")
    if option not in ("--local_rank", "--local-rank"):
        return arguments
    return arguments[1 if equals else 2 :]


def _run(arguments: list[str], signals: LeaveAtOnce, parent: int) -> int:
    try:
        cfg = reading.load(arguments[0], arguments[1:])
    except ValueError as error:
        return _complain_once(error, WRONG, signals)
    except OSError as error:  # the file cannot be read at the moment
        return _complain_once(error, FAILED, signals)

    signals.would_lose(before_first_step(cfg.folder))
    phases = Phases()
    phases.main.next(START, 0, "importing torch")
    # They import torch, which takes over a second: a config that is wrong need not wait for it.
    from parallel.world import runtime as runtimes
    from trainer.process.failures import Failures
    from trainer.process.notify import Notifier
    from trainer.watch.begin import watchdog

    signals.listen()
    _open_as_many_files_as_allowed()
    phases.main.next(START, 0, "meeting the other ranks")
    try:
        timeout = timedelta(seconds=cfg.parallel.timeout_seconds)
        runtime = runtimes.meet(timeout=timeout, parent=parent)
    except ValueError as error:
        return complain(error, WRONG)
    except RuntimeError as error:  # rank 0 did not come, or the meeting place is not there
        return complain(error, FAILED)
    signals.announce_with(runtime.announce_exit)
    fence = Fence(cfg.folder)
    failures = Failures(cfg.folder, runtime, fence)
    runtime.on_lost = failures.record_lost
    watch = watchdog(cfg, runtime, fence, phases)
    if code := _join(runtime, failures):
        return code
    told = cfg.supervise.notify if runtime.is_writer and not is_supervised() else ""
    notifier = Notifier(told, cfg.name, cfg.folder).begin()
    try:
        with ExitStack() as stack:
            watch.begin()
            stack.callback(watch.stop)
            code = _train(cfg, runtime, stack, signals, failures, phases)
            # A signal that comes while the rank is on its way out changes nothing, and prints no second line.
            signals.save_first(runtime.stop_at_next_step, lambda: goes_on(cfg.folder))
    except (RuntimeError, OSError) as error:  # of closing what was open, such as a save under way
        if code in (DONE, *ASKED_TO_STOP):
            code = failures.fail_or_follow(error)
    except Exception as bug:
        code = FAILED
        if runtime.world == 1:
            raise
        traceback.print_exception(bug)  # now, for `stop` may not come back
    finally:
        runtime.announce_exit(code)
        notifier.tell("end", last_step(cfg.folder), IN_WORDS.get(code, "failed"), code=code)
        notifier.finish()
        runtime.stop(failed_with=0 if code in (DONE, *ASKED_TO_STOP) else code)
    return code


def _join(runtime, failures) -> int:  # type: ignore[no-untyped-def]
    """Meet the other ranks; return an exit code where that fails, else DONE."""
    try:
        runtime.join()
        return DONE
    except ValueError as error:
        code = failures.report(on_every_rank(error), WRONG)
    except (RuntimeError, OSError) as error:  # others did not come, or a connection cannot be made
        with runtime.reporting():
            code = complain(error, FAILED)
    runtime.announce_exit(code)
    return code


def _complain_once(error: Exception, code: int, signals: LeaveAtOnce) -> int:
    """Print an error that most likely all ranks have, before they have met. Rank 0 prints it, and its
    launcher then ends the others; a rank that nobody ends within `ALONE_SECONDS` may have it alone.
    """
    if not is_first():
        signals.leave_silently(code)
        time.sleep(ALONE_SECONDS)
    return complain(error, code)


def _open_as_many_files_as_allowed() -> None:
    """Raise the soft limit of open files to the hard limit, for each shard that is read stays open. The usual
    soft limit of 1024 is for programs that call select(2); the hard limit is the administrator's.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS: the hard limit it reports may be above its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _train(  # type: ignore[no-untyped-def]
    cfg: RunConfig, runtime, stack: ExitStack, signals: LeaveAtOnce, failures, phases
) -> int:
    starting = Starting(shown=runtime.is_writer)
    stack.callback(starting.end)

    def doing(what: str) -> None:
        starting.now(what)
        phases.main.next(START, 0, what)

    try:
        from trainer.run import assemble

        run = assemble(cfg, runtime, stack, fence=failures.fence, doing=doing, phases=phases)
    except BlockingIOError as error:
        return failures.report(error, STOPPED)
    except ValueError as error:
        return failures.report(error, WRONG)
    except (RuntimeError, OSError, MemoryError) as error:
        return failures.fail_or_follow(error)
    if run.state.step >= cfg.train.steps and runtime.is_writer:
        done = (
            f"{cfg.folder} is at step {run.state.step}, train.steps={cfg.train.steps}: nothing is left to do"
        )
        print(done, file=sys.stderr, flush=True)
    elif run.best.is_over and runtime.is_writer:
        print(
            f"{cfg.folder} has ended early at step {run.state.step}: {run.best}", file=sys.stderr, flush=True
        )
    # From here on ranks wait for each other: a signal only raises a flag, and the loop ends on all together.
    signals.save_first(runtime.stop_at_next_step, lambda: goes_on(cfg.folder), tells=runtime.is_writer)
    starting.until("the first step", lambda: runtime.is_under_way)
    try:
        finished = run()
        runtime.mark_under_way()
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        failures.record(error, run.state.step)
        return failures.fail_or_follow(error)
    if finished:
        return DONE
    if runtime.is_writer:
        print(run.left_at(), file=sys.stderr, flush=True)
    return of_request(signals.asked)


if __name__ == "__main__":
    forgive()
    if sys.stdout is not None:  # a terminal's encoding may have no "…"
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    run_to_the_end(lambda: main(sys.argv[1:], ends_process=True))
