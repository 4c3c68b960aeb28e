"""One rank of a run: `python -m trainer CONFIG [key=value…]`, under any launcher or none.

Exit codes: 0 done; 1 failed; 2 the config is wrong; 75 asked to stop, state saved, or the run is
held by another process: run me again.
"""

import contextlib
import os
import signal
import sys
import traceback
from contextlib import ExitStack

from trainer import config as configs
from trainer.config import RunConfig
from trainer.disk import explained
from trainer.fence import Fence
from trainer.interrupts import LeaveAtOnce
from trainer.starting import Starting

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 75
AGREED = (DONE, STOPPED)  # what all ranks leave with together
USAGE = "usage: python -m trainer CONFIG [key=value…]"


def main(arguments: list[str]) -> int:
    """Train the run that `arguments` (a config file, then key=value) describe; returns the exit code.

    A local rank before them, which DeepSpeed's launcher passes, is dropped: LOCAL_RANK says it too.
    """
    arguments = _without_local_rank(arguments)
    if arguments in (["-h"], ["--help"]):
        print(f"{USAGE}: one rank of a run; `germinal train` starts them")
        return DONE
    if not arguments or arguments[0].startswith("-"):
        return complain(USAGE, WRONG)
    at_once = LeaveAtOnce("the first step").begin()
    try:
        return _run(arguments, at_once)
    finally:
        at_once.end()


def _without_local_rank(arguments: list[str]) -> list[str]:
    option, equals, _ = (arguments or [""])[0].partition("=")
    if option not in ("--local_rank", "--local-rank"):
        return arguments
    return arguments[1 if equals else 2 :]


def _run(arguments: list[str], at_once: LeaveAtOnce) -> int:
    try:
        cfg = configs.load(arguments[0], arguments[1:])
    except ValueError as error:
        return complain(error, WRONG)

    # Torch takes over a second to import: a config that is wrong need not wait for it.
    import torch

    from parallel import runtime as runtimes

    at_once.without_a_word()
    try:
        runtime = runtimes.start()
    except ValueError as error:
        return complain(error, WRONG)
    except RuntimeError as error:  # the other ranks did not come, or their meeting place is not there
        return complain(error, FAILED)
    finally:
        at_once.in_words()
    if cfg.train.threads:
        torch.set_num_threads(cfg.train.threads)
    code = DONE
    fence = Fence(cfg.folder)
    try:
        # From here on ranks wait for each other: a request to stop is for the loop, where all leave together.
        at_once.end(signal.SIGTERM, signal.SIGUSR1)
        runtime.watch_signals()
        with ExitStack() as stack:
            code = _train(cfg, runtime, stack, at_once, fence)
    except (RuntimeError, OSError) as error:  # of closing what was open, such as a save under way
        if code in AGREED:
            code = fail(error, cfg, runtime.rank, fence)
    except Exception as bug:
        if runtime.world == 1:
            raise
        traceback.print_exception(bug)  # now, for `stop` may not come back
        code = FAILED
    finally:
        runtime.stop(failed_with=0 if code in AGREED else code)
    return code


def _train(  # type: ignore[no-untyped-def]
    cfg: RunConfig, runtime, stack: ExitStack, at_once: LeaveAtOnce, fence: Fence
) -> int:
    from trainer.metrics.events import EventLog
    from trainer.run import assemble

    starting = Starting(shown=runtime.is_writer)
    stack.callback(starting.end)
    try:
        run = assemble(cfg, runtime, stack, fence=fence, doing=starting.now)
    except BlockingIOError as error:
        return complain(error, STOPPED)
    except ValueError as error:
        return complain(error, WRONG)
    except (RuntimeError, OSError, MemoryError) as error:
        return fail(error, cfg, runtime.rank, fence)
    if run.state.step >= cfg.train.steps and runtime.is_writer:
        done = (
            f"{cfg.folder} is at step {run.state.step}, train.steps={cfg.train.steps}: nothing is left to do"
        )
        print(done, file=sys.stderr, flush=True)
    at_once.end()
    first = run.state.step
    starting.until("the first step", lambda: run.state.step > first)
    try:
        finished = run()
    except KeyboardInterrupt:
        return complain(
            f"interrupted at step {run.state.step}; the same command goes on from the last checkpoint", 130
        )
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        with (
            contextlib.suppress(OSError, RuntimeError),
            contextlib.closing(EventLog(cfg.folder / "events.jsonl", fence.look, shown=False)) as events,
        ):
            events.event("fault", run.state.step, " ".join(str(error).split()), rank=runtime.rank)
        return fail(error, cfg, runtime.rank, fence)
    return DONE if finished else STOPPED


def complain(error: object, code: int) -> int:
    """One line on standard error, and the exit code that goes with it."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


def nobody_reads() -> int:
    """The exit code for a reader of standard output that has gone (`… | head`); nothing more is written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def fail(error: Exception, cfg: RunConfig, rank: int, fence: Fence) -> int:
    """A failure as one line; where it came from goes into the run folder, if this start may write there."""
    what = explained(error, cfg.folder)
    if isinstance(error, MemoryError):  # often without a word
        found = f"out of memory ({what})" if what else "out of memory"
        what = f"{found}: lower data.seq_len, train.micro_batch or the model's sizes"
    elif type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU: words enough, but none of ours
        what = f"{what}: lower train.micro_batch, set parallel.recompute=full or spread the model further"
    trace = cfg.folder / "faults" / f"rank-{rank:05d}.txt"
    try:
        fence.look()
        trace.parent.mkdir(exist_ok=True)
        trace.write_text("".join(traceback.format_exception(error)))
    except (OSError, RuntimeError):
        return complain(what, FAILED)
    return complain(f"{what} (traceback: {trace})", FAILED)


if __name__ == "__main__":
    if sys.stdout is not None:  # a terminal's encoding may have no "…"
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
