"""`germinal transfer`: what pre-training is worth, as score against the number of labels."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.exit_codes import STOPPED
from common.standard_error import complain
from launch import options
from launch.checks import check_alone, check_job
from launch.job import TRANSFER, Job
from trainer.process import cores

if TYPE_CHECKING:
    from trainer.config.transferring import Transfer
    from trainer.folder.fence import Fence


def add_command(add: options.AddCommand) -> None:
    parser = add(
        "transfer",
        "what pre-training is worth: score against the number of labels, pre-trained and from random weights",
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="YAML file with pretrain: and finetune:, as configs/transfer has them",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes one key of it")
    parser.add_argument(
        "--workers",
        type=options.count,
        default=0,
        metavar="N",
        help="processes that fine-tune, one core each (default: the free cores)",
    )
    parser.set_defaults(run=transfer, rest="overrides")


def transfer(args: argparse.Namespace) -> int:
    """Pre-train, fine-tune, and write the table; what is done already is not done again."""
    from trainer.config import transferring

    check_alone(os.environ)
    occupancy = cores.Occupancy()
    with ExitStack() as stack:
        try:
            found = transferring.load(args.config, args.overrides, lambda folder: _hold(folder, stack))
        except BlockingIOError as error:
            return complain(error, STOPPED)
        if not found.given:
            check_job(Job(str(found.pretrain_file)))
        workers = args.workers or cores.choose(1, asked=0, environ={}, folder=None, occupancy=occupancy).count
        return _begin(found) or _pretrain(found) or _finetune(found, workers) or _show(found)


def _hold(folder: Path, stack: ExitStack) -> Fence:
    """Hold a comparison's folder until `stack` is closed. BlockingIOError where another start holds it."""
    from common.lock import FolderLock
    from trainer.folder.fence import Fence

    lock = FolderLock.take(folder)
    stack.callback(lock.release)
    fence = Fence(folder)
    fence.take(lock.check)
    return fence


def _begin(found: Transfer) -> int:
    """Draw labels and random weights; return the exit code."""
    from trainer.transfer.records import Records

    return 0 if Records(found.cfg).begun() else _work(found, "begin", 1)


def _pretrain(found: Transfer) -> int:
    """Do what `germinal train` does, unless a finished run was named; return the exit code."""
    from launch.local.keep_running import keep_running
    from trainer.checkpoint.folder import steps

    cfg = found.pretraining
    if found.given or cfg.train.steps in steps(cfg.folder / "checkpoints")[:1]:
        return 0
    print(f"{cfg.folder}: pre-training", file=sys.stderr, flush=True)
    return keep_running(Job(str(found.pretrain_file)), cfg)


def _finetune(found: Transfer, workers: int) -> int:
    """Do the fine-tunings that are left, those that learning rates are chosen by first; return the exit
    code.
    """
    from trainer.transfer import plan
    from trainer.transfer.records import Records

    records = Records(found.cfg)
    for part in ("rates", "scores"):
        rates = part == "rates"
        wanted = plan.rate_trials(found.cfg) if rates else plan.score_trials(found.cfg, records.scores())
        left = [trial for trial in wanted if not records.has(trial)]
        if not left:
            continue
        many = f"{len(left)} fine-tunings are left, {workers} at a time"
        print(f"{found.cfg.folder}: {part}: {many}", file=sys.stderr, flush=True)
        if code := _work(found, part, min(workers, len(left))):
            return code
    return 0


def _work(found: Transfer, part: str, workers: int) -> int:
    """Do a part of the work in so many processes, each with one thread; return the exit code."""
    from launch.local.rank_commands import rank_commands
    from launch.local.supervisor import supervise
    from trainer.config.transferring import RECORD

    found.guard()
    job = Job(str(found.cfg.folder / RECORD), module=TRANSFER, threads=1)
    mark = f"--mark={found.fence.mark if found.fence else ''}"
    options = ((part, f"--worker={worker}", f"--workers={workers}", mark) for worker in range(workers))
    each = (rank_commands(replace(job, options=words), environ=os.environ) for words in options)
    return supervise([command for commands in each for command in commands]).show_error()


def _show(found: Transfer) -> int:
    """Write the table and the picture, and print the table."""
    from trainer.transfer import picture, table
    from trainer.transfer.records import Records

    made, folder = table.make(Records(found.cfg)), found.cfg.folder
    found.guard()
    table.write(made, folder)
    picture.draw(made, folder / picture.FILE)
    print(table.markdown(made), end="")
    places = (table.DOCUMENT, table.MARKDOWN, picture.FILE)
    print("see " + "  ".join(str(folder / place) for place in places), file=sys.stderr)
    return 0
