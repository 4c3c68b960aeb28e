"""`germinal status`: how runs are: queued, running, ended, and how far."""

import argparse
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from launch import options, tables

if TYPE_CHECKING:
    from launch.cluster.state import Status

RUN = "a run's name, its folder, or the id of its job"


def add_command(add: options.AddCommand) -> None:
    parser = add("status", "how runs are: state and reason, step, rate, time left, restarts")
    parser.add_argument("runs", metavar="RUN", nargs="*", help=f"{RUN} (default: all in runs/)")
    options.add_json(parser)
    parser.set_defaults(run=status)


def status(args: argparse.Namespace) -> int:
    """Show the state of each run: one as a table of its own, several as one table."""
    from launch.cluster import state, submission
    from trainer.folder.run_folder import is_run

    folders = [state.find(word, os.environ) for word in args.runs]
    if not args.runs:
        entries = sorted(Path("runs").iterdir()) if Path("runs").is_dir() else []
        folders = [entry for entry in entries if is_run(entry) or submission.folders(entry)]
    found = state.statuses(folders, os.environ)
    if args.json:
        documents = [one.document() for one in found]
        tables.document(documents[0] if len(args.runs) == 1 else {"runs": documents})
    elif len(found) == 1:
        tables.facts(found[0].folder, _facts(found[0]))
    else:
        columns = ("run", "state", "job", "step", "of", "left", "restarts", "reason")
        tables.rows(f"{len(found)} runs", columns, [_line(one) for one in found])
    return 0


def _facts(one: "Status") -> dict[str, object]:
    far = one.progress
    facts: dict[str, object] = {"state": one.state, "reason": one.reason}
    if one.jobs:
        facts["job"] = ", ".join(one.jobs) + (f" on {one.nodes}" if one.nodes else "")
    facts["step"] = "-" if far.step is None else f"{far.step:,} of {tables.shown(far.steps)}"
    if far.loss is not None:
        facts["loss"] = far.loss
    if far.steps_per_second:
        rate, unit = far.tokens_per_second, "tokens"
        if far.images_per_second is not None:
            rate, unit = far.images_per_second, "images"
        facts["rate"] = f"{far.steps_per_second:.3g} steps/s, {_whole(rate)} {unit}/s"
    if far.seconds_since_step is not None:
        facts["last step"] = f"{in_words(far.seconds_since_step)} ago"
    if one.is_live and far.seconds_left is not None:
        facts["time left"] = in_words(far.seconds_left)
    if one.job_left:
        facts["job's time left"] = like_in_words(one.job_left)
    facts["restarts"] = far.restarts
    return {name: value for name, value in facts.items() if value != ""}


def _line(one: "Status") -> tuple[object, ...]:
    far = one.progress
    left = in_words(far.seconds_left) if one.is_live and far.seconds_left is not None else None
    return (
        one.run,
        one.state,
        ", ".join(one.jobs) or None,
        far.step,
        far.steps,
        left,
        far.restarts,
        one.reason,
    )


def _whole(rate: float | None) -> str:
    return tables.shown(None if rate is None else round(rate))


def like_in_words(left: str) -> str:
    """Return squeue's time left, `[DAYS-][HOURS:]MINUTES:SECONDS`, as `in_words` writes it; other words of
    squeue, such as UNLIMITED, as they are.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", left)
    if found is None:
        return left
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return in_words(timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds())


def in_words(seconds: float) -> str:
    """Format a duration: 3723.4 → 1:02:03."""
    return str(timedelta(seconds=round(seconds)))
