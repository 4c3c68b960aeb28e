"""The process of `germinal train --debug`, one for each rank.

`python -m trainer.process.entry trainer.debug.command [options] CONFIG [key=value…]`; under torchrun,
`torchrun … -m trainer.debug.command [options] CONFIG`.

Exit codes: 0 all is well; 1 a failure, a batch that was not learnt, or a forward pass with chance in it; 2
the command or the config is wrong; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from common.exit_codes import DONE, FAILED, INTERRUPTED, WRONG
from common.standard_error import complain, nobody_reads
from parallel.world import runtime as runtimes
from parallel.world.runtime import Runtime
from trainer.config import reading
from trainer.config.run_config import RunConfig
from trainer.debug import debugger as debuggers
from trainer.debug import overfit
from trainer.debug.debugger import Debugger
from trainer.debug.look import Wanted, look
from trainer.debug.session import open_session
from trainer.process.interrupts import LeaveAtOnce
from trainer.ranks import BY_ANOTHER_RANK, IN_EVENTS, ON_EVERY_RANK

PATIENCE = timedelta(days=30)
"""How long ranks wait for one that is in a debugger."""

OVERRIDES = (
    # Hooks do not reach into compiled blocks.
    "parallel.compile=false",
    f"parallel.timeout_seconds={PATIENCE.total_seconds()}",
)


MARKS = (BY_ANOTHER_RANK, IN_EVENTS, ON_EVERY_RANK)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this process that `germinal` passes on; all are unset by default."""
    parser.add_argument("--steps", type=int)
    parser.add_argument("--step", type=int)
    parser.add_argument("--overfit", action="store_true")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--any-algorithm", action="store_true")
    parser.add_argument("--no-anomaly", action="store_true")
    parser.add_argument("--debug-rank", type=int)
    parser.add_argument("--sockets", type=Path)


def main(arguments: Sequence[str], at_once: LeaveAtOnce | None = None) -> int:
    """Look into the run; return the exit code.

    `at_once` ends the process at a signal, in a thread: where it is one rank of several. Without it, Ctrl-C
    is a KeyboardInterrupt, at which a terminal's pdb opens.
    """
    parser = argparse.ArgumentParser(prog="python -m trainer.debug.command")
    add_options(parser)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args(arguments)
    try:
        cfg = reading.load(args.config, (*args.overrides, *OVERRIDES))
        check_out(args.out, cfg)
        if at_once:
            at_once.listen()
        runtime = runtimes.start(timeout=PATIENCE)
    except ValueError as error:
        return complain(error, WRONG)
    except (RuntimeError, OSError) as error:
        return complain(error, FAILED)
    if runtime.world > 1 and at_once is None:
        LeaveAtOnce("the end", lost="").begin().listen()
    stack = ExitStack()
    sockets = args.sockets
    if sockets is None and args.debug_rank == runtime.rank and runtime.world > 1:
        sockets = Path(stack.enter_context(debuggers.socket_folder()))
    debugger = debuggers.choose(runtime.rank, runtime.world, sockets=sockets, only=args.debug_rank)
    code = FAILED
    try:
        code = _look(cfg, runtime, debugger, args)
    finally:
        stack.close()
        runtime.announce_exit(code)
        runtime.stop(failed_with=0 if code == DONE else code)
    return code


def check_out(out: Path | None, cfg: RunConfig) -> None:
    """ValueError where the output would go into the run folder, which is not to be written to."""
    if out is not None and out.resolve().is_relative_to(cfg.folder.resolve()):
        raise ValueError(f"--out {out}: lies in the run folder, which --debug leaves as it is: give another")


def _look(cfg: RunConfig, runtime: Runtime, debugger: Debugger, args: argparse.Namespace) -> int:
    def say(line: str) -> None:
        if runtime.is_writer:
            print(line, flush=True)

    with ExitStack() as stack:
        try:
            try:
                run = open_session(cfg, runtime, stack, step=args.step)
            except ValueError as error:
                return complain(error, WRONG)
            out = _out(args.out) if runtime.is_writer else None
            say(f"{cfg.folder}: {run.origin}, {run.layout}, {cfg.train.precision}; nothing is written there")
            wanted = Wanted(
                steps=args.steps or (overfit.STEPS if args.overfit else 1),
                rows=args.rows,
                overfits=args.overfit,
                deterministic=not args.any_algorithm,
                finds_anomalies=not args.no_anomaly,
                out=out,
            )
            well = look(run, wanted, say)
            if out is not None:
                say(f"written: {', '.join(str(path) for path in sorted(out.iterdir()))}")
        except BrokenPipeError:
            return nobody_reads()
        except debuggers.LEFT:
            return FAILED
        except KeyboardInterrupt as interrupt:
            debugger.post_mortem(interrupt)
            return INTERRUPTED
        except Exception as error:
            if ON_EVERY_RANK in getattr(error, "__notes__", ()):  # foreseen: its line says all
                return complain(error, FAILED)
            debugger.post_mortem(error)
            where = f"rank {runtime.rank}: " if runtime.world > 1 else ""
            return complain(f"{where}{_with_notes(error)}", FAILED)
    return DONE if well else FAILED


def _out(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="germinal-debug-"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _with_notes(error: Exception) -> str:
    """The error's text and what was noted on it, but for the notes that `trainer.ranks` reads."""
    notes = (note for note in getattr(error, "__notes__", ()) if note not in MARKS)
    return "; ".join((str(error) or type(error).__name__, *notes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
