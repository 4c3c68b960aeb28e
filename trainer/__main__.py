"""One rank of a run: `python -m trainer CONFIG [key=value…]`, under any launcher or none.

Exit codes: 0 done; 1 failed; 2 the config is wrong; 75 asked to stop, state saved, or the run is
held by another process: run me again; 130 interrupted by Ctrl-C, state saved.
"""

import contextlib
import os
import resource
import signal
import sys
import traceback
from contextlib import ExitStack

from common.standard_error import forgive
from trainer.config import run_config as configs
from trainer.config.run_config import RunConfig
from trainer.folder.fence import Fence
from trainer.process.disk import explained
from trainer.process.ending import run_to_the_end
from trainer.process.interrupts import INTERRUPTED, STOPPED, LeaveAtOnce
from trainer.process.starting import Starting
from trainer.record.events import ELSEWHERE, ON_EVERY_RANK, TOLD, EventLog

DONE, FAILED, WRONG = 0, 1, 2
AGREED = (DONE, STOPPED, INTERRUPTED)  # what all ranks leave with together
SAID_SECONDS = 60.0  # how long a rank waits for the one that says its error too, and then says it itself
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
    signals = LeaveAtOnce("the first step", first_tell=True).begin()
    try:
        return _run(arguments, signals)
    finally:
        signals.end()


def _without_local_rank(arguments: list[str]) -> list[str]:
    option, equals, _ = (arguments or [""])[0].partition("=")
    if option not in ("--local_rank", "--local-rank"):
        return arguments
    return arguments[1 if equals else 2 :]


def _run(arguments: list[str], signals: LeaveAtOnce) -> int:
    try:
        cfg = configs.load(arguments[0], arguments[1:])
    except ValueError as error:
        return complain(error, WRONG)

    # It imports torch, which takes over a second: a config that is wrong need not wait for it.
    from parallel.world import runtime as runtimes

    signals.listen()
    _open_as_many_files_as_allowed()
    try:
        runtime = runtimes.meet()
    except ValueError as error:
        return complain(error, WRONG)
    except RuntimeError as error:  # rank 0 did not come, or the meeting place is not there
        return complain(error, FAILED)
    signals.tell(runtime.leaves)
    try:
        runtime.join()
    except ValueError as error:
        error.add_note(ON_EVERY_RANK)
        code = _say(error, WRONG, runtime)
        runtime.leaves(code)
        return code
    except RuntimeError as error:  # others did not come
        with runtime.saying_why():
            complain(error, FAILED)
        runtime.leaves(FAILED)
        return FAILED
    code = DONE
    fence = Fence(cfg.folder)
    try:
        with ExitStack() as stack:
            code = _train(cfg, runtime, stack, signals, fence)
            # What is asked of a rank that is on its way out changes nothing, and is no second line.
            signals.ask(runtime.stop_at_next_step)
    except (RuntimeError, OSError) as error:  # of closing what was open, such as a save under way
        if code in AGREED:
            code = _fail_or_follow(error, cfg, runtime, fence)
    except Exception as bug:
        if runtime.world == 1:
            raise
        traceback.print_exception(bug)  # now, for `stop` may not come back
        code = FAILED
    finally:
        runtime.leaves(code)
        runtime.stop(failed_with=0 if code in AGREED else code)
    return code


def _open_as_many_files_as_allowed() -> None:
    """Each shard that is read stays open, and the usual soft limit of 1024 files is for programs that call
    select(2); the hard limit is the administrator's.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS: the hard limit it reports may be above its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _train(  # type: ignore[no-untyped-def]
    cfg: RunConfig, runtime, stack: ExitStack, signals: LeaveAtOnce, fence: Fence
) -> int:
    starting = Starting(shown=runtime.is_writer)
    stack.callback(starting.end)
    try:
        from trainer.run import assemble

        run = assemble(cfg, runtime, stack, fence=fence, doing=starting.now)
    except BlockingIOError as error:
        return _say(error, STOPPED, runtime)
    except ValueError as error:
        return _say(error, WRONG, runtime)
    except (RuntimeError, OSError, MemoryError) as error:
        return _fail_or_follow(error, cfg, runtime, fence)
    if run.state.step >= cfg.train.steps and runtime.is_writer:
        done = (
            f"{cfg.folder} is at step {run.state.step}, train.steps={cfg.train.steps}: nothing is left to do"
        )
        print(done, file=sys.stderr, flush=True)
    # From here on ranks wait for each other: a signal is for the loop, where all leave together.
    signals.ask(runtime.stop_at_next_step)
    starting.until("the first step", lambda: runtime.is_under_way)
    try:
        finished = run()
        runtime.under_way()
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        _record(error, run.state.step, cfg, runtime, fence)
        return _fail_or_follow(error, cfg, runtime, fence)
    if finished:
        return DONE
    if runtime.is_writer:
        print(run.left_at(), file=sys.stderr, flush=True)
    return INTERRUPTED if signals.asked == signal.SIGINT else STOPPED


def _record(error: Exception, step: int, cfg: RunConfig, runtime, fence: Fence) -> None:  # type: ignore[no-untyped-def]
    """The failure as an event of the run, unless another tells it."""
    notes = getattr(error, "__notes__", ())
    if TOLD in notes or ELSEWHERE in notes or (ON_EVERY_RANK in notes and not runtime.is_writer):
        return
    with (
        contextlib.suppress(OSError, RuntimeError),
        contextlib.closing(EventLog(cfg.folder / "events.jsonl", fence.look, shown=False)) as events,
    ):
        events.event("fault", step, " ".join(str(error).split()), rank=runtime.rank)


def _fail_or_follow(error: Exception, cfg: RunConfig, runtime, fence: Fence) -> int:  # type: ignore[no-untyped-def]
    """The exit code of a failure, in a line; where it is the effect of another rank's end, that rank's."""
    if _is_said(error, runtime):
        return FAILED
    left = runtime.first_to_leave() if isinstance(error, RuntimeError) else None
    with runtime.saying_why():
        if left is None:
            return fail(error, cfg, runtime, fence)
        code = FAILED if left.code is None else left.code
        return complain(left, code) if runtime.tells_of(left) else code


def _say(error: Exception, code: int, runtime) -> int:  # type: ignore[no-untyped-def]
    """`complain` on the rank that is to say this error."""
    if not _is_said(error, runtime):
        with runtime.saying_why():
            complain(f"{_where(error, runtime)}{error}", code)
    return code


def _is_said(error: Exception, runtime) -> bool:  # type: ignore[no-untyped-def]
    """Whether another rank has said this error, and left. Waits for that where another is to.

    Never where the ranks do not hear of each other: their supervisor shows one error of all.
    """
    notes = getattr(error, "__notes__", ())
    is_rank_0s = (TOLD in notes or ON_EVERY_RANK in notes) and not runtime.is_writer
    if ELSEWHERE not in notes and not is_rank_0s:
        return False
    left = runtime.first_to_leave(SAID_SECONDS)
    runtime.has_said_why = left is not None and left.code is not None  # or it is gone without a word
    return bool(runtime.has_said_why)


def _where(error: Exception, runtime) -> str:  # type: ignore[no-untyped-def]
    """The rank, of an error that only some ranks have and that does not name them yet."""
    notes = getattr(error, "__notes__", ())
    alone = runtime.world == 1 or not {TOLD, ON_EVERY_RANK, ELSEWHERE}.isdisjoint(notes)
    return "" if alone else f"rank {runtime.rank}: "


def complain(error: object, code: int) -> int:
    """One line on standard error, and the exit code that goes with it."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


def nobody_reads() -> int:
    """The exit code for a reader of standard output that has gone (`… | head`); nothing more is written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def fail(error: Exception, cfg: RunConfig, runtime, fence: Fence) -> int:  # type: ignore[no-untyped-def]
    """A failure as one line; where it came from goes into the run folder, if this start may write there."""
    what = explained(error, cfg.folder)
    where = _where(error, runtime)
    if isinstance(error, MemoryError):  # often without a word
        found = f"out of memory ({what})" if what else "out of memory"
        what = f"{found}: lower data.seq_len, train.micro_batch or the model's sizes"
    elif type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU: words enough, but none of ours
        what = f"{what}: lower train.micro_batch, set parallel.recompute=full or spread the model further"
    trace = cfg.folder / "faults" / f"rank-{runtime.rank:05d}.txt"
    try:
        fence.look()
        trace.parent.mkdir(exist_ok=True)
        trace.write_text("".join(traceback.format_exception(error)))
    except (OSError, RuntimeError):
        return complain(f"{where}{what}", FAILED)
    return complain(f"{where}{what} (traceback: {trace})", FAILED)


if __name__ == "__main__":
    forgive()
    if sys.stdout is not None:  # a terminal's encoding may have no "…"
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    run_to_the_end(lambda: main(sys.argv[1:]))
