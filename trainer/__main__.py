"""One rank of a run: `python -m trainer CONFIG [key=value…]`, under any launcher or none.

Exit codes: 0 done; 1 failed; 2 the config is wrong; 75 asked to stop, state saved, run me again.
"""

import contextlib
import sys
import traceback
from contextlib import ExitStack

from trainer import config as configs
from trainer.config import RunConfig

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 75


def main(arguments: list[str]) -> int:
    """Train the run that `arguments` (a config file, then key=value) describe; returns the exit code."""
    if not arguments or arguments[0].startswith("-"):
        return complain("usage: python -m trainer CONFIG [key=value…]", WRONG)
    try:
        cfg = configs.load(arguments[0], arguments[1:])
    except ValueError as error:
        return complain(error, WRONG)

    # Torch takes over a second to import: a config that is wrong need not wait for it.
    import torch

    from parallel import runtime as runtimes

    try:
        runtime = runtimes.start()
    except ValueError as error:
        return complain(error, WRONG)
    if cfg.train.threads:
        torch.set_num_threads(cfg.train.threads)
    with ExitStack() as stack:
        stack.callback(runtime.stop)
        runtime.watch_signals()
        return _train(cfg, runtime, stack)


def _train(cfg: RunConfig, runtime, stack: ExitStack) -> int:  # type: ignore[no-untyped-def]
    from trainer.metrics.events import EventLog
    from trainer.run import assemble

    try:
        run = assemble(cfg, runtime, stack)
    except ValueError as error:
        return complain(error, WRONG)
    except (RuntimeError, OSError) as error:
        return fail(error, cfg, runtime.rank)
    try:
        finished = run()
    except KeyboardInterrupt:
        return complain(
            f"interrupted at step {run.state.step}; the same command goes on from the last checkpoint", 130
        )
    except (RuntimeError, OSError) as error:
        with (
            contextlib.suppress(OSError),
            contextlib.closing(EventLog(cfg.folder / "events.jsonl")) as events,
        ):
            events.event("fault", run.state.step, " ".join(str(error).split()), rank=runtime.rank)
        return fail(error, cfg, runtime.rank)
    return DONE if finished else STOPPED


def complain(error: object, code: int) -> int:
    """One line on standard error, and the exit code that goes with it."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


def fail(error: Exception, cfg: RunConfig, rank: int) -> int:
    """A failure as one line; where it came from goes into the run folder, if that can be written."""
    trace = cfg.folder / "faults" / f"rank-{rank:05d}.txt"
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text("".join(traceback.format_exception(error)))
    except OSError:
        return complain(error, FAILED)
    return complain(f"{error} (traceback: {trace})", FAILED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
